"""What a version of the server costs per call beside another: bytes on the wire and CPU time.

git worktree add --detach BEFORE COMMIT && (cd BEFORE && uv sync --all-packages)
uv run python -m benchmarks.contract_cost BEFORE AFTER [--rounds N]

Serves two small models from two folders with the project, in turns, and makes the same calls, in
bytes, to both. A proxy between client and server counts the bytes of both directions. The CPU time
is that of the server's process, and the ratio is the median of those of the rounds: other programs
on the machine slow both down alike.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.processes import cpu_s
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import rerank_service_pb2 as rerank

_FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
_STREAM_TEXTS, _BATCH = 10_000, 100
_EMBED = "/embedgrpc.v1.EmbeddingService/Embed"
_RERANK = "/embedgrpc.v1.RerankService/Rerank"
_STREAM = "/embedgrpc.v1.EmbeddingService/StreamEmbed"
_TIMEOUT_S = 120.0
_IN_FLIGHT = 4


def _text(number: int) -> str:
    return f"passage {number} of the words that a call usually has"


def _unary(method: str, calls: int, request: Callable[[int], bytes]) -> "_Kind":
    requests = [request(number) for number in range(calls)]

    async def make(channel: grpc.aio.Channel) -> int:
        call: Any = channel.unary_unary(method)
        waiting = iter(requests)

        async def work() -> None:
            for one in waiting:
                await call(one, timeout=_TIMEOUT_S)

        await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))
        return calls

    return make


def _embed(texts: int) -> Callable[[int], bytes]:
    return lambda number: embedding.EmbedRequest(
        texts=[_text(number * texts + position) for position in range(texts)]
    ).SerializeToString()


def _rerank(number: int) -> bytes:
    documents = [_text(number * 10 + position) for position in range(10)]
    return rerank.RerankRequest(
        model="cross", query=f"query {number}", documents=documents
    ).SerializeToString()


def _stream_messages() -> list[bytes]:
    setup = embedding.StreamEmbedRequest(
        setup=embedding.StreamEmbedSetup(order=embedding.RESULT_ORDER_COMPLETION)
    )
    batches = (
        embedding.StreamEmbedRequest(
            batch=embedding.StreamEmbedBatch(
                inputs=[
                    embedding.StreamEmbedInput(id=str(number), text=_text(number))
                    for number in range(start, start + _BATCH)
                ]
            )
        )
        for start in range(0, _STREAM_TEXTS, _BATCH)
    )
    return [setup.SerializeToString(), *(one.SerializeToString() for one in batches)]


async def _stream(channel: grpc.aio.Channel) -> int:
    call: Any = channel.stream_stream(_STREAM)
    async for _ in call(iter(_stream_messages()), timeout=_TIMEOUT_S):
        pass
    return 1


# Makes calls on a channel; returns how many.
_Kind = Callable[[grpc.aio.Channel], Awaitable[int]]
_KINDS: dict[str, _Kind] = {
    "Embed of 1 text": _unary(_EMBED, 300, _embed(1)),
    "Embed of 64 texts": _unary(_EMBED, 30, _embed(64)),
    "Rerank of 10 documents": _unary(_RERANK, 100, _rerank),
    "StreamEmbed of 10,000 texts": _stream,
}


@dataclass(frozen=True, slots=True)
class _Cost:
    """What one call of a kind costs."""

    wire_bytes: float
    cpu_us: float


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve the project in a folder; yield the address, and the id of the process."""
    models = (f"embed={_FIXTURES / 'bert-cls'}", f"cross={_FIXTURES / 'cross-bert'}")
    flags = [flag for model in models for flag in ("--model", model)]
    process = subprocess.Popen(
        [
            *(
                str(folder / ".venv" / "bin" / "python"),
                "-m",
                "embedgrpc.cli.main",
                "serve",
                *flags,
            ),
            *("--address", "127.0.0.1:0", "--log-format", "json", "--device", "cpu"),
            *("--intra-op-threads", "1"),
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr or ():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("event") == "serving":
                yield entry["address"], process.pid
                return
        raise RuntimeError(f"the server of {folder} ended before it served")
    finally:
        process.terminate()
        process.communicate(timeout=60)


@asynccontextmanager
async def _counted(address: str) -> AsyncIterator[tuple[str, Callable[[], int]]]:
    """Forward connections to an address; yield another address, and what counts the bytes."""
    host, _, port = address.rpartition(":")
    count = 0

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while data := await reader.read(65_536):
            count += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        # The loop cancels this when all is measured.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                copy(reader, server_writer), copy(server_reader, writer), return_exceptions=True
            )

    proxy = await asyncio.start_server(forward, "127.0.0.1")
    try:
        yield f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}", lambda: count
    finally:
        proxy.close()


async def _compare(
    servers: tuple[tuple[str, int], tuple[str, int]], rounds: int
) -> dict[str, list[tuple[_Cost, _Cost]]]:
    """Return what the calls of each kind cost on both servers, round by round."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    found: dict[str, list[tuple[_Cost, _Cost]]] = {}
    async with contextlib.AsyncExitStack() as resources:
        counted = [await resources.enter_async_context(_counted(one)) for one, _ in servers]
        for name, kind in _KINDS.items():
            channels = [
                await resources.enter_async_context(grpc.aio.insecure_channel(one, options=options))
                for one, _ in counted
            ]

            async def measure(side: int, channels: Any = channels, kind: _Kind = kind) -> _Cost:
                (_, count), (_, pid) = counted[side], servers[side]
                bytes_before, cpu_before = count(), cpu_s(pid)
                calls = await kind(channels[side])
                cpu_us = (cpu_s(pid) - cpu_before) * 1e6
                return _Cost((count() - bytes_before) / calls, cpu_us / calls)

            # The first calls fill tables of headers and caches.
            _ = [await measure(side) for side in (0, 1)]
            found[name] = []
            for number in range(rounds):
                first = number % 2
                costs = {side: await measure(side) for side in (first, 1 - first)}
                found[name].append((costs[0], costs[1]))
    return found


def main() -> None:
    """Measure both versions in turns; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="folder with the project as it was")
    parser.add_argument("after", type=Path, help="folder with the project as it is")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each kind")
    arguments = parser.parse_args()
    folders = [folder.resolve() for folder in (arguments.before, arguments.after)]
    os.environ["OTEL_SDK_DISABLED"] = "true"
    with _served(folders[0]) as before, _served(folders[1]) as after:
        found = asyncio.run(_compare((before, after), arguments.rounds))
    print("| call | bytes before | after | ratio | CPU us before | after | ratio (middle half) |")
    print("|---|---|---|---|---|---|---|")
    for name, pairs in found.items():
        sizes = [statistics.median(pair[at].wire_bytes for pair in pairs) for at in (0, 1)]
        times = [statistics.median(pair[at].cpu_us for pair in pairs) for at in (0, 1)]
        ratios = sorted(second.cpu_us / first.cpu_us for first, second in pairs)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        cells = (
            f"{sizes[0]:,.0f} | {sizes[1]:,.0f} | {sizes[1] / sizes[0]:.4f}",
            f"{times[0]:,.0f} | {times[1]:,.0f}",
            f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})",
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
