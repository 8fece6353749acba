import asyncio
import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from embedgrpc.client import AsyncClient, Client, DeadlineExpiredError
from embedgrpc.client.attempts import Attempts, RetryBudget
from embedgrpc.client.concurrency import ConcurrencyLimit, Slot
from tests.client.servicer import Script, serving

BURST = 1000
# Long enough for a burst on a slow machine; a lost call fails at once.
PATIENCE_S = 60.0


# 100 is the limit of proxies and the default; 10 is far below it.
@pytest.mark.parametrize("max_streams", [100, 10])
async def test_a_burst_on_one_event_loop_is_answered(max_streams: int) -> None:
    """A thousand calls at once all succeed, whatever the server's limit on one connection."""
    with serving(max_streams=max_streams) as (_, target):
        async with AsyncClient(target, timeout_s=PATIENCE_S) as client:
            answers = await asyncio.gather(*(client.embed([str(n)]) for n in range(BURST)))
    assert [answer.input_tokens for answer in answers] == [len(str(n)) for n in range(BURST)]


@pytest.mark.parametrize("max_streams", [pytest.param(128, marks=pytest.mark.slow), 10])
def test_a_burst_of_threads_is_answered(max_streams: int) -> None:
    """A thousand threads that share a client all succeed too."""
    with (
        serving(max_streams=max_streams) as (_, target),
        Client(target, timeout_s=PATIENCE_S) as client,
        ThreadPoolExecutor(BURST) as pool,
    ):
        together = threading.Barrier(BURST)

        def embed(number: int) -> int:
            together.wait()
            return client.embed([str(number)]).input_tokens

        answers = list(pool.map(embed, range(BURST)))
    assert answers == [len(str(n)) for n in range(BURST)]


async def test_a_burst_of_streams_is_answered() -> None:
    """Streams wait for their turn like calls, also on a server with a low limit."""
    with serving(max_streams=10) as (_, target):
        async with AsyncClient(target, timeout_s=PATIENCE_S) as client:

            async def embed(number: int) -> list[str]:
                inputs = [(str(number), "a"), (str(number), "b")]
                return [result.id async for result in client.embed_stream(inputs)]

            answers = await asyncio.gather(*map(embed, range(200)))
    assert answers == [[str(n)] * 2 for n in range(200)]


def test_a_burst_of_streams_of_threads_is_answered() -> None:
    """Streams of threads wait for their turn too."""
    with (
        serving(max_streams=10) as (_, target),
        Client(target, timeout_s=PATIENCE_S) as client,
        ThreadPoolExecutor(100) as pool,
    ):
        together = threading.Barrier(100)

        def embed(number: int) -> list[str]:
            together.wait()
            return [result.id for result in client.embed_stream([(str(number), "a")])]

        answers = list(pool.map(embed, range(100)))
    assert answers == [[str(n)] for n in range(100)]


def test_clients_of_one_target_have_a_connection_each(target: str, script: Script) -> None:
    """The server's limit is for one connection, so clients must not share one."""
    peers: set[str] = set()
    script.on_call = lambda context: peers.add(context.peer())
    with Client(target) as first, Client(target) as second:
        first.health()
        second.health()
        first.health()
    assert len(peers) == 2


def test_a_call_that_waited_in_vain_says_what_for(client_class: type[Client], target: str) -> None:
    """An open stream is in flight; closing it lets the next call start."""
    client = client_class(target, timeout_s=10, max_concurrent_calls=1)
    stream = client.embed_stream(map(str, range(100)))
    next(stream)
    with pytest.raises(DeadlineExpiredError, match="max_concurrent_calls is 1") as caught:
        client.health(timeout_s=0.1)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == ""
    with pytest.raises(DeadlineExpiredError, match="max_concurrent_calls is 1"):
        next(client.embed_stream(["a"], timeout_s=0.1))
    stream.close()
    assert client.health() == "SERVING"
    client.close()


def test_a_dropped_stream_releases_its_slot(client_class: type[Client], target: str) -> None:
    """Neither a garbage-collected stream nor one that has ended is in flight."""
    client = client_class(target, timeout_s=10, max_concurrent_calls=1)
    stream = client.embed_stream(map(str, range(100)))
    next(stream)
    del stream
    gc.collect()
    assert client.health() == "SERVING"
    assert len(list(client.embed_stream(["a"]))) == 1
    assert client.health() == "SERVING"
    client.close()


async def test_a_cancelled_call_leaves_the_queue(target: str, script: Script) -> None:
    """A cancelled call holds no slot, wherever it was in the queue."""
    script.hold_answers = threading.Event()
    async with AsyncClient(target, timeout_s=PATIENCE_S, max_concurrent_calls=1) as client:
        stream = client.embed_stream(map(str, range(100)))
        await stream.ready()
        waiting = [asyncio.ensure_future(client.health()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await stream.aclose()
        waiting[1].cancel()  # it may be starting
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
        assert results[2] == "SERVING"
        assert client._concurrency._count == 0
    script.hold_answers.set()


def test_calls_begin_in_the_order_in_which_they_came() -> None:
    """A released slot goes to the call that waits longest, never to a new one."""
    concurrency = ConcurrencyLimit(2)
    begun: list[int] = []
    slots = [concurrency.acquire(lambda n=n: begun.append(n)) for n in range(5)]  # type: ignore[misc] # bound early
    assert [slot.granted for slot in slots] == [True, True, False, False, False]
    concurrency.release(slots[3])
    concurrency.release(slots[0])
    concurrency.release(slots[0])
    assert begun == [2]
    newcomer = concurrency.acquire(lambda: begun.append(5))
    assert not newcomer.granted
    for slot in (slots[1], slots[2], slots[4]):
        concurrency.release(slot)
    assert begun == [2, 4, 5]


def test_the_limit_falls_once_for_calls_that_were_sent_together() -> None:
    """The first refusal of several halves the limit; a minute without refusals restores it."""
    now = 100.0
    concurrency = ConcurrencyLimit(8, clock=lambda: now)
    first = [concurrency.acquire(lambda: None) for _ in range(8)]
    for slot in first:
        concurrency.lower(slot)
        concurrency.release(slot)
    assert concurrency.limit == 4
    second = [concurrency.acquire(lambda: None) for _ in range(8)]
    assert [slot.granted for slot in second] == [True] * 4 + [False] * 4
    now += 59.9
    concurrency.release(concurrency.acquire(lambda: None))
    assert concurrency.limit == 4
    now += 0.1
    concurrency.release(concurrency.acquire(lambda: None))
    assert concurrency.limit == 8
    assert all(slot.granted for slot in second)
    for slot in second:
        concurrency.lower(slot)
    assert concurrency.limit == 4


def test_the_limit_never_falls_below_one() -> None:
    """A refused call that was the only one can start again."""
    concurrency = ConcurrencyLimit(1)
    for _ in range(3):
        slot = concurrency.acquire(lambda: None)
        concurrency.lower(slot)
        concurrency.release(slot)
        assert concurrency.limit == 1
    assert concurrency.acquire(lambda: None).granted


def test_no_more_than_the_limit_are_in_flight() -> None:
    """The limit holds for any order of calls, and no slot is lost."""
    chance = random.Random(7)  # noqa: S311 -- not a secret
    concurrency = ConcurrencyLimit(5)
    slots: list[Slot] = []
    for _ in range(2000):
        if chance.random() < 0.5:
            slots.append(concurrency.acquire(lambda: None))
        elif slots:
            slot = slots.pop(chance.randrange(len(slots)))
            if chance.random() < 0.1:
                concurrency.lower(slot)
            concurrency.release(slot)
        granted = sum(slot.granted for slot in slots)
        assert granted <= 5
        assert granted >= min(concurrency.limit, len(slots))


@pytest.mark.parametrize("max_concurrent_calls", [0, -1])
def test_a_limit_that_lets_nothing_through_is_refused(max_concurrent_calls: int) -> None:
    """A client without slots could never call."""
    with pytest.raises(ValueError, match="max_concurrent_calls is"):
        Client(max_concurrent_calls=max_concurrent_calls)


class _Failure:
    """The part of an `RpcError` that the client reads."""

    def __init__(self, details: str) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        """Return the status of a lost call."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """Return the details."""
        return self._details


def test_only_refused_calls_are_made_again_and_only_in_time() -> None:
    """The delays grow until the deadline; other failures are not retried."""
    concurrency = ConcurrencyLimit(8)
    slot = concurrency.acquire(lambda: None)
    refused = _Failure("Stream removed (RST_STREAM (Received RST_STREAM with error code 7))")
    attempts = Attempts(concurrency, RetryBudget(), 1000)
    assert attempts.delay_s(_Failure("Received RST_STREAM with error code 8"), slot) is None
    assert concurrency.limit == 8
    delays = [attempts.delay_s(refused, slot) or 0 for _ in range(10)]
    assert 0.01 <= delays[0] <= 0.02
    assert 0.5 <= delays[-1] <= 1
    assert concurrency.limit < 8
    assert Attempts(concurrency, RetryBudget(), 0.005).delay_s(refused, slot) is None
