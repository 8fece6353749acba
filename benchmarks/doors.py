"""What a request costs through each door: CPU time of the server, and requests a second.

uv run python -m benchmarks.doors [--rounds N] [--requests N] [--backend instant|real]

The doors are measured in turns in one run, with the same texts, all different. The CPU time is that
of the server's process, and the ratio the median of those of the rounds to gRPC's: other programs
on the machine slow all doors down alike.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2

from benchmarks import workloads
from benchmarks.doors_server import MODEL
from benchmarks.processes import cpu_s
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import embedding_service_pb2

_IN_FLIGHT = 16
# However many texts each has.
_REQUESTS_MIN = 4
_TIMEOUT_S = 120.0
_BASELINE = "gRPC Embed"
_TEXTS = (1, 32)

# Sends the messages of a request on a connection of its own, and reads the responses.
_Send = Callable[[Sequence[bytes]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Door:
    """A way to embed texts.

    Attributes:
        name: Its name in the table.
        path: The method of gRPC, or the path of HTTP.
        write: Makes the messages, or the body, of a request.
        streams: Whether the messages of all requests of a connection go over one stream.
    """

    name: str
    path: str
    write: Callable[[Sequence[str]], Sequence[bytes]]
    streams: bool = False

    @property
    def is_grpc(self) -> bool:
        """Whether it is a method of gRPC."""
        return "." in self.path


def _json(body: Mapping[str, Any]) -> Sequence[bytes]:
    return [json.dumps(body).encode()]


def _tei(texts: Sequence[str]) -> Sequence[bytes]:
    return [tei_pb2.EmbedRequest(inputs=text).SerializeToString() for text in texts]


def _kserve(texts: Sequence[str]) -> Sequence[bytes]:
    data = [text.encode() for text in texts]
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="text", datatype="BYTES", shape=[len(texts), 1]
    )
    request = service_pb2.ModelInferRequest(
        model_name=MODEL,
        inputs=[tensor],
        raw_input_contents=[b"".join(len(one).to_bytes(4, "little") + one for one in data)],
    )
    return [request.SerializeToString()]


_DOORS = (
    _Door(
        _BASELINE,
        "/embedgrpc.v1.EmbeddingService/Embed",
        lambda texts: [embedding_service_pb2.EmbedRequest(texts=texts).SerializeToString()],
    ),
    _Door(
        "OpenAI, base64",
        "/v1/embeddings",
        lambda texts: _json({"input": texts, "model": "", "encoding_format": "base64"}),
    ),
    _Door(
        "OpenAI, float",
        "/v1/embeddings",
        lambda texts: _json({"input": texts, "model": "", "encoding_format": "float"}),
    ),
    _Door("TEI /embed", "/embed", lambda texts: _json({"inputs": texts})),
    _Door("KServe ModelInfer", "/inference.GRPCInferenceService/ModelInfer", _kserve),
    _Door("tei.v1 Embed, a call a text", "/tei.v1.Embed/Embed", _tei),
    _Door(
        "tei.v1 EmbedStream",
        "/tei.v1.Embed/EmbedStream",
        _tei,
        streams=True,
    ),
)


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a request costs, and how many there were in a second."""

    cpu_us: float
    per_s: float


@dataclass(frozen=True, slots=True)
class _Server:
    """A running server."""

    pid: int
    grpc: str
    http: str


@contextmanager
def _served(backend: str) -> Iterator[_Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.doors_server", backend],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError("the server ended before it served")
        yield _Server(process.pid, **json.loads(line))
    finally:
        process.communicate(timeout=60)


@asynccontextmanager
async def _connected(door: _Door, server: _Server) -> AsyncIterator[list[_Send]]:
    """Yield a sender for each request that is in flight."""
    async with AsyncExitStack() as resources:
        if door.is_grpc:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await resources.enter_async_context(
                grpc.aio.insecure_channel(server.grpc, options=options)
            )
            if door.streams:
                stream: Any = channel.stream_stream(door.path)
                streams = [stream() for _ in range(_IN_FLIGHT)]
                yield [_stream_sender(one) for one in streams]
                for one in streams:
                    await one.done_writing()
                    await one.code()
                return
            call: Any = channel.unary_unary(door.path)

            async def send(messages: Sequence[bytes]) -> None:
                calls = [call(message, timeout=_TIMEOUT_S) for message in messages]
                await asyncio.gather(*calls)

            yield [send] * _IN_FLIGHT
            return
        senders: list[_Send] = []
        for _ in range(_IN_FLIGHT):
            host, _, port = server.http.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            resources.callback(writer.close)
            senders.append(_http_sender(door.path, reader, writer))
        yield senders


def _stream_sender(call: Any) -> _Send:
    """Return what sends messages over a stream that stays open."""

    async def send(messages: Sequence[bytes]) -> None:
        for message in messages:
            await call.write(message)
        for _ in messages:
            if await call.read() is grpc.aio.EOF:
                raise RuntimeError("the stream ended before its answers came")

    return send


def _http_sender(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Send:
    """Return what sends requests over a connection that stays open."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n"
        "authorization: Bearer unused\r\nuser-agent: benchmark\r\n"
        "content-type: application/json\r\ncontent-length: "
    ).encode()

    async def send(messages: Sequence[bytes]) -> None:
        (request,) = messages
        writer.write(b"%s%d\r\n\r\n%s" % (head, len(request), request))
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer.decode())
        length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))

    return send


async def _measure(
    senders: Sequence[_Send], requests: Sequence[Sequence[bytes]], pid: int
) -> _Cost:
    waiting = iter(requests)

    async def work(send: _Send) -> None:
        for request in waiting:
            await send(request)

    before, began = cpu_s(pid), time.perf_counter()
    await asyncio.gather(*map(work, senders))
    seconds = time.perf_counter() - began
    return _Cost((cpu_s(pid) - before) * 1e6 / len(requests), len(requests) / seconds)


async def _compare(
    server: _Server, texts: int, *, rounds: int, requests: int
) -> Mapping[str, list[_Cost]]:
    """Return what a request costs through each door, round by round."""
    words = workloads.short().texts
    number = itertools.count()

    def batch() -> list[str]:
        # The server runs equal texts in flight once.
        return [f"{at} {words[at % len(words)]}" for at in itertools.islice(number, texts)]

    costs: dict[str, list[_Cost]] = {door.name: [] for door in _DOORS}
    async with AsyncExitStack() as resources:
        connected = {
            door.name: await resources.enter_async_context(_connected(door, server))
            for door in _DOORS
        }
        for round_ in range(-1, rounds):
            # Each goes first as often as the others.
            first = round_ % len(_DOORS)
            for door in (*_DOORS[first:], *_DOORS[:first]):
                bodies = [door.write(batch()) for _ in range(requests)]
                cost = await _measure(connected[door.name], bodies, server.pid)
                # The first round fills caches and tables of headers.
                if round_ >= 0:
                    costs[door.name].append(cost)
    return costs


def _print(backend: str, texts: int, costs: Mapping[str, list[_Cost]]) -> None:
    for name, found in costs.items():
        ratios = sorted(
            one.cpu_us / base.cpu_us for one, base in zip(found, costs[_BASELINE], strict=True)
        )
        quarter = len(ratios) // 4
        half = f"{ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f}"
        cells = (
            f"{backend} | {texts} | {name}",
            f"{statistics.median(one.cpu_us for one in found):,.0f}",
            f"{statistics.median(ratios):.2f} ({half})",
            f"{statistics.median(one.per_s for one in found):,.0f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure all doors in turns; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=16, help="turns of each door")
    parser.add_argument("--requests", type=int, default=400, help="requests of one text in a turn")
    parser.add_argument("--backend", choices=("instant", "real"), action="append")
    arguments = parser.parse_args()
    os.environ["OTEL_SDK_DISABLED"] = "true"
    print("| backend | texts | door | CPU us a request | to gRPC's (middle half) | requests/s |")
    print("|---|---|---|---|---|---|")
    # One event loop: grpc.aio complains of every other.
    asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> None:
    for backend in arguments.backend or ("instant", "real"):
        with _served(backend) as server:
            for texts in _TEXTS:
                requests = max(arguments.requests // texts, _REQUESTS_MIN)
                found = await _compare(server, texts, rounds=arguments.rounds, requests=requests)
                _print(backend, texts, found)


if __name__ == "__main__":
    main()
