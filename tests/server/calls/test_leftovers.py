"""What calls leave behind when the garbage collector does not come."""

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from tests.server.conftest import Serve
from tests.server.every_call import CASES
from tests.server.service import CROSS, EMBED, until

CALLS = 20
# Threads of the engine hold on to the last calls that they worked for.
KEPT_MAX = CALLS // 2
# What there is once, or a few times, for each call. Not looked at is what gRPC itself leaves: the
# function that finds the handler of a call, which holds itself and the call's metadata.
KINDS = (
    "AbortError",
    "BidiStream",
    "CancelledError",
    "EmbedRequest",
    "StreamBatch",
    "EmbeddingStream",
    "Future",
    "Inputs",
    "Job",
    "JobHandle",
    "OutputRows",
    "RPCState",
    "RequestStream",
    "RerankRequest",
    "RerankResponse",
    "StreamEmbedRequest",
    "StreamRerankRequest",
    "Task",
    "_Gathered",
    "_ServicerContext",
    "bytes",
    "coroutine",
    "frame",
    "traceback",
)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is freed but by counting references."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _census() -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects())


def _grown(before: Counter[str]) -> dict[str, int]:
    """Tell which kinds of objects are more than before by more than what may be kept."""
    after = _census()
    grown = {kind: after[kind] - before[kind] for kind in KINDS}
    return {kind: count for kind, count in grown.items() if count > KEPT_MAX}


def _is_as_before(before: Counter[str]) -> bool:
    return not _grown(before)


@pytest.mark.usefixtures("no_collector")
async def test_calls_leave_nothing(serve: Serve) -> None:
    """Calls that are answered, refused, cancelled or fail are freed at once, whatever the RPC."""
    service = await serve(EMBED, CROSS)
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.every_call", service.address),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stdout is not None

    orders, answers = client.stdin, client.stdout

    async def make(name: str, count: int) -> None:
        orders.write(f"{name} {count}\n".encode())
        await answers.readline()
        # gRPC holds on to the last call until the next one comes.
        orders.write(b"Check 1\n")
        await answers.readline()
        await until(lambda: not len(service.server.open_calls))

    left = {}
    try:
        for name in CASES:
            # Caches fill, and threads hold on to the last that they worked on.
            await make(name, CALLS // 2)
            before = _census()
            await make(name, CALLS)
            # Threads of the engine may still be at work for calls that are over.
            try:
                await until(partial(_is_as_before, before))
            except TimeoutError:
                left[name] = _grown(before)
    finally:
        orders.close()
        await client.wait()
    assert left == {}
