"""What calls leave in memory without the garbage collector."""

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
# Threads of the engine keep the last calls that they worked for.
KEPT_MAX = CALLS // 2
# Types with one or a few objects for each call. gRPC itself leaves one that is not listed: the
# function that finds the handler of a call references itself and the call's metadata.
KINDS = (
    "AbortError",
    "BidiStream",
    "ClassificationStream",
    "CancelledError",
    "EmbedRequest",
    "StreamBatch",
    "StreamClassifyRequest",
    "StreamResults",
    "EmbeddingStream",
    "ItemStream",
    "Future",
    "InferCall",
    "Inputs",
    "Job",
    "JobHandle",
    "ModelInferRequest",
    "OutputRows",
    "Parameters",
    "RPCState",
    "RequestStream",
    "RerankRequest",
    "RerankResponse",
    "StreamEmbedRequest",
    "StreamRerankRequest",
    "Task",
    "TeiAnswer",
    "TeiRequest",
    "_Gathered",
    "_ServicerContext",
    "bytes",
    "coroutine",
    "frame",
    "traceback",
)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counting frees objects."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _census() -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects())


def _grown(before: Counter[str]) -> dict[str, int]:
    """Return the types that have more objects than before, by more than may be kept."""
    after = _census()
    grown = {kind: after[kind] - before[kind] for kind in KINDS}
    return {kind: count for kind, count in grown.items() if count > KEPT_MAX}


def _is_as_before(before: Counter[str]) -> bool:
    return not _grown(before)


@pytest.mark.long
@pytest.mark.usefixtures("no_collector")
async def test_calls_leave_nothing(serve: Serve) -> None:
    """Calls that are answered, refused, cancelled or fail are freed at once, for every RPC."""
    service = await serve(EMBED, CROSS, tei_model="embed", kserve=True)
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
        # gRPC keeps the last call until the next one comes.
        orders.write(b"Check 1\n")
        await answers.readline()
        await until(lambda: not len(service.server.open_calls))

    left = {}
    try:
        for name in CASES:
            # This fills caches; threads keep the last call that they worked for.
            await make(name, CALLS // 2)
            before = _census()
            await make(name, CALLS)
            # Threads of the engine may still work for calls that have ended.
            try:
                await until(partial(_is_as_before, before))
            except TimeoutError:
                left[name] = _grown(before)
    finally:
        orders.close()
        await client.wait()
    assert left == {}
