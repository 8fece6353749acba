"""What it costs to know, limit, count and log calls: the CPU time of a unary call with and without.

uv run python -m benchmarks.calls_cost [--rounds N] [--parts NAME...] [--before FOLDER]

Starts a server without, and one that checks API keys, limits its callers, is scraped for metrics
and logs every call. Both make the same calls in turns. The CPU time is that of the server's
process, and the ratio is the median of those of the rounds: other programs on the machine slow both
down alike.

Every server counts calls, whether its metrics are read or not. With `--before`, the server without
is that of another folder with the project, as it was before it counted:

git worktree add --detach FOLDER COMMIT && (cd FOLDER && uv sync --all-packages)
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.processes import cpu_s
from embedgrpc.v1 import embedding_service_pb2

_ROOT = Path(__file__).parent.parent
_METHOD = "/embedgrpc.v1.EmbeddingService/Embed"
_TIMEOUT_S = 120.0
# As Prometheus does by default; a round may take less.
_SCRAPE_INTERVAL_S = 15.0
# Few a round, so that both servers meet the same noise.
_CALLS = {"tiny": 20, "MiniLM": 10}
# The tiny model is that of the tests, whose calls take little but the server's own time.
_MODELS: Mapping[str, Sequence[str]] = {
    "tiny": ("--model", f"embed={_ROOT / 'tests' / 'fixtures' / 'bert-cls'}"),
    "MiniLM": (),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the cost.

    Attributes:
        flags: What turns it on.
        metadata: What each call then needs.
    """

    flags: Sequence[str]
    metadata: Sequence[tuple[str, str]] = field(default=())


@dataclass(frozen=True, slots=True)
class Running:
    """A server.

    Attributes:
        pid: Its process.
        address: Where it listens.
        metrics_address: Where it is scraped; may be empty.
        metadata: What calls need.
    """

    pid: int
    address: str
    metrics_address: str
    metadata: Sequence[tuple[str, str]]


def _parts(folder: Path) -> dict[str, Part]:
    """Return all parts; they may put files into a folder."""
    key = f"eg_{secrets.token_urlsafe(32)}"
    keys = folder / "keys.toml"
    digest = hashlib.sha256(key.encode()).hexdigest()
    table = f'[[keys]]\nname = "search"\nkey = "sha256:{digest}"\nscopes = ["metrics"]\n'
    keys.write_text(table, "utf-8")
    return {
        "authentication": Part(
            ("--api-keys-file", str(keys)), (("authorization", f"Bearer {key}"),)
        ),
        "rates": Part(
            (
                *("--requests-per-s", "100000", "--tokens-per-min", "100000000000"),
                *("--max-calls-per-caller", "1000"),
            )
        ),
        "metrics": Part(("--metrics-address", "127.0.0.1:0")),
        "log": Part(("--access-log", "all")),
    }


@contextmanager
def _served(folder: Path, model: str, parts: Sequence[Part]) -> Iterator[Running]:
    """Serve the project in a folder."""
    command = [
        *(str(folder / ".venv" / "bin" / "python"), "-m", "embedgrpc.cli.main", "serve"),
        *_MODELS[model],
        *("--address", "127.0.0.1:0", "--log-format", "json", "--device", "cpu"),
        *("--intra-op-threads", "1"),
        *(flag for part in parts for flag in part.flags),
    ]
    # In a file, which takes lines as fast as they come.
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, cwd=folder, stderr=log)
        try:
            addresses = _wait_for_addresses(process, Path(log.name))
            metadata = [one for part in parts for one in part.metadata]
            yield Running(process.pid, *addresses, metadata)
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_for_addresses(process: "subprocess.Popen[bytes]", log: Path) -> tuple[str, str]:
    """Wait until a server serves; return its address, and that of its metrics, if it has one."""
    while True:
        entries = [json.loads(one) for one in log.read_text().splitlines() if one.startswith("{")]
        by_event = {entry["event"]: entry for entry in entries}
        if "serving" in by_event:
            listening = by_event.get("listening", {})
            return by_event["serving"]["address"], listening.get("metrics_address", "")
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
        time.sleep(0.05)


async def _scrape(server: Running) -> None:
    """Read the metrics of a server again and again, as Prometheus does."""
    while True:
        await asyncio.to_thread(_read_metrics, server)
        await asyncio.sleep(_SCRAPE_INTERVAL_S)


def _read_metrics(server: Running) -> bytes:
    url = f"http://{server.metrics_address}/metrics"
    request = urllib.request.Request(url, headers=dict(server.metadata))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http
        data: bytes = answer.read()
    return data


async def _measure(
    server: Running, channel: grpc.aio.Channel, requests: Sequence[bytes], in_flight: int
) -> float:
    """Return the CPU time of a call, in microseconds."""
    embed: Any = channel.unary_unary(_METHOD)
    left = iter(requests)

    async def work() -> None:
        for request in left:
            await embed(request, timeout=_TIMEOUT_S, metadata=server.metadata)

    before = cpu_s(server.pid)
    await asyncio.gather(*(work() for _ in range(in_flight)))
    return (cpu_s(server.pid) - before) / len(requests) * 1e6


async def _compare(
    servers: Sequence[Running], calls: int, rounds: int, in_flight: int
) -> list[Sequence[float]]:
    """Return the CPU times of a call on each server, round by round."""
    requests = [
        embedding_service_pb2.EmbedRequest(
            texts=[f"query {number} of the words that a search usually has"]
        ).SerializeToString()
        for number in range(calls)
    ]
    options = [("grpc.use_local_subchannel_pool", 1)]
    found: list[Sequence[float]] = []
    async with contextlib.AsyncExitStack() as resources:
        channels = [
            await resources.enter_async_context(
                grpc.aio.insecure_channel(one.address, options=options)
            )
            for one in servers
        ]
        scrapes = [asyncio.create_task(_scrape(one)) for one in servers if one.metrics_address]
        # The first calls fill caches.
        for server, channel in zip(servers, channels, strict=True):
            await _measure(server, channel, requests, in_flight)
        for number in range(rounds):
            times = [0.0] * len(servers)
            turns = list(enumerate(zip(servers, channels, strict=True)))
            for side, (server, channel) in turns if number % 2 else reversed(turns):
                times[side] = await _measure(server, channel, requests, in_flight)
            found.append(times)
        for scrape in scrapes:
            scrape.cancel()
        ended = await asyncio.gather(*scrapes, return_exceptions=True)
        for error in ended:
            if not isinstance(error, asyncio.CancelledError | None):
                raise error
    return found


def main() -> None:
    """Measure both servers in turns; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500, help="turns with each model")
    parser.add_argument("--parts", nargs="*", help="what the second server does (default: all)")
    parser.add_argument("--models", nargs="+", choices=tuple(_MODELS), default=tuple(_MODELS))
    parser.add_argument("--in-flight", type=int, default=4, help="calls at once")
    parser.add_argument("--before", type=Path, default=_ROOT, help="folder of the first server")
    arguments = parser.parse_args()
    os.environ["OTEL_SDK_DISABLED"] = "true"
    print("| model | parts | CPU us without | with | ratio (middle half) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        parts = _parts(Path(folder))
        names = tuple(parts) if arguments.parts is None else arguments.parts
        chosen = [parts[name] for name in names]
        for model in arguments.models:
            with (
                _served(arguments.before.resolve(), model, ()) as without,
                _served(_ROOT, model, chosen) as having,
            ):
                found = asyncio.run(
                    _compare(
                        (without, having), _CALLS[model], arguments.rounds, arguments.in_flight
                    )
                )
            print(f"| {model} | {', '.join(names) or 'none'} | {_cells(found)} |", flush=True)


def _cells(found: Sequence[Sequence[float]]) -> str:
    before, after = (statistics.median(one[at] for one in found) for at in (0, 1))
    ratios = sorted(second / first for first, second in found)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return (
        f"{before:,.0f} | {after:,.0f} | {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
