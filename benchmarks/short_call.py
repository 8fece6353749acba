"""CPU time of one short Embed call beside a bare `grpc.aio` call that does nothing.

uv run python -m benchmarks.short_call [FOLDER...] [--rounds N] [--calls N] [--texts words|passages]

Serves the project of each folder, this one by default, with a backend that answers at once, and a
bare `grpc.aio` server that answers with as many bytes. All get the same calls in turns, 32 in
flight. The CPU time is that of each process; the ratio is the median of those of the rounds to the
bare server: other programs on the machine slow all down alike.

git worktree add --detach FOLDER COMMIT && (cd FOLDER && uv sync --all-packages)
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from benchmarks import workloads
from benchmarks.processes import cpu_s
from benchmarks.unary_calls import embed_calls

_ROOT = Path(__file__).parent.parent
_METHOD = "/embedgrpc.v1.EmbeddingService/Embed"
_IN_FLIGHT = 32
_TIMEOUT_S = 120.0
# A vector of 384 numbers, with the rest of the response.
_RESPONSE = bytes(1630)
# As `embedgrpc serve` sets it.
_SWITCH_INTERVAL_S = 0.0005
# The argument that makes this program the bare server.
_BARE = "bare"
_WORKLOADS = {"words": workloads.short, "passages": workloads.passages}


@dataclass
class _Subject:
    """A server.

    Attributes:
        name: Its name in the table.
        pid: Its process.
        address: Where it listens.
        cpu_us: The CPU time of a call in each round, in microseconds.
    """

    name: str
    pid: int
    address: str
    cpu_us: list[float] = field(default_factory=list)


async def _serve_bare() -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        del request, context
        return _RESPONSE

    service, _, method = _METHOD[1:].rpartition("/")
    handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"grpc": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextmanager
def _running(name: str, folder: Path, *command: str) -> Iterator[_Subject]:
    process = subprocess.Popen(
        [str(folder / ".venv" / "bin" / "python"), "-m", *command],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"the server of {folder} ended before it served")
        yield _Subject(name, process.pid, json.loads(line)["grpc"])
    finally:
        process.communicate(timeout=60)


async def _measure(subject: _Subject, channel: grpc.aio.Channel, requests: Sequence[bytes]) -> None:
    call: Any = channel.unary_unary(_METHOD)
    left = iter(requests)

    async def work() -> None:
        for request in left:
            await call(request, timeout=_TIMEOUT_S)

    before = cpu_s(subject.pid)
    await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))
    subject.cpu_us.append((cpu_s(subject.pid) - before) * 1e6 / len(requests))


async def _compare(subjects: Sequence[_Subject], requests: Sequence[bytes], rounds: int) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as resources:
        channels = [
            await resources.enter_async_context(
                grpc.aio.insecure_channel(one.address, options=options)
            )
            for one in subjects
        ]
        turns = list(zip(subjects, channels, strict=True))
        # The first calls fill caches.
        for subject, channel in turns:
            await _measure(subject, channel, requests)
            subject.cpu_us.clear()
        for number in range(rounds):
            first = number % len(turns)
            for subject, channel in turns[first:] + turns[:first]:
                await _measure(subject, channel, requests)


def main() -> None:
    """Measure all in turns; print a table."""
    if sys.argv[1:] == [_BARE]:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        uvloop.run(_serve_bare())
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[_ROOT])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=640, help="calls in a round")
    parser.add_argument("--texts", choices=tuple(_WORKLOADS), default="words")
    arguments = parser.parse_args()
    workload = _WORKLOADS[arguments.texts]()
    requests = embed_calls(arguments.texts, workload).requests[: arguments.calls]
    # As `embedgrpc serve` sets it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ExitStack() as resources:
        subjects = [
            resources.enter_context(_running("bare", _ROOT, "benchmarks.short_call", _BARE))
        ]
        subjects += [
            resources.enter_context(
                _running(str(one), one.resolve(), "benchmarks.doors_server", "instant")
            )
            for one in arguments.folders
        ]
        uvloop.run(_compare(subjects, requests, arguments.rounds))
    print("| server | CPU us a call | to bare (middle half) |\n|---|---|---|")
    for subject in subjects:
        ratios = sorted(a / b for a, b in zip(subject.cpu_us, subjects[0].cpu_us, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(
            f"| {subject.name} | {statistics.median(subject.cpu_us):,.0f} |"
            f" {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) |"
        )


if __name__ == "__main__":
    main()
