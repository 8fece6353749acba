"""The accounts of callers: what each may use, and how many are remembered."""

import asyncio

import pytest

from embedgrpc.engine.errors import RateLimitedError
from embedgrpc.server.rates.account import Account
from embedgrpc.server.rates.durations import duration
from embedgrpc.server.rates.limits import RateLimits
from embedgrpc.server.rates.rates import Accounts
from embedgrpc.server.rates.refusals import Limit
from embedgrpc.server.rates.totals import RateTotals
from tests.server.rates.clock import Clock

LIMITS = RateLimits(requests_per_s=4, request_burst=8, tokens_per_min=600, token_burst=100)


def make_account(limits: RateLimits, clock: Clock) -> tuple[Account, RateTotals]:
    """Return an account, and what counts its refusals."""
    totals = RateTotals()
    return Account("someone", limits, totals, clock=clock, sleep=clock.sleep), totals


def test_a_request_beyond_the_burst_is_refused_until_the_stated_time() -> None:
    """The error says when the next request fits, and then it does."""
    clock = Clock()
    account, totals = make_account(LIMITS, clock)
    for _ in range(8):
        account.take_request(has_tokens=True)
    with pytest.raises(RateLimitedError, match="4 per second, 8 at once") as refused:
        account.take_request(has_tokens=True)
    assert refused.value.metadata == {
        "label": "REQUESTS_PER_SECOND",
        "caller": "someone",
        "limit": "4",
        "burst": "8",
    }
    assert refused.value.retry_delay_s is not None
    assert 0.25 <= refused.value.retry_delay_s <= 0.3
    assert totals.refusals == {Limit.REQUESTS: 1, Limit.TOKENS: 0, Limit.CALLS: 0}
    clock.now += refused.value.retry_delay_s
    account.take_request(has_tokens=True)


def test_tokens_are_taken_by_estimate_and_settled_by_use() -> None:
    """An estimate that was too high is given back, and one that was too low leaves a debt."""
    clock = Clock()
    account, _ = make_account(LIMITS, clock)
    account.hold(90)
    with pytest.raises(RateLimitedError, match="10 are left, and this request has about 20"):
        account.hold(20)
    account.spend(5)
    account.release(90)
    assert account.figures()["x-ratelimit-remaining-tokens"] == "95"
    account.hold(20)
    account.spend(200)
    account.release(20)
    assert account.figures()["x-ratelimit-remaining-tokens"] == "0"
    # 105 tokens of debt, and one more, at ten a second.
    clock.now += 10.59
    with pytest.raises(RateLimitedError, match=r"too many tokens.*at once, for caller 'someone'"):
        account.take_request(has_tokens=True)
    account.take_request(has_tokens=False)
    clock.now += 0.01
    account.take_request(has_tokens=True)


def test_a_request_larger_than_the_burst_needs_all_of_it() -> None:
    """A large first call is not refused for ever: it is accepted when all tokens are left."""
    clock = Clock()
    account, _ = make_account(LIMITS, clock)
    account.hold(1)
    with pytest.raises(RateLimitedError):
        account.hold(5000)
    account.release(1)
    account.hold(5000)
    assert account.figures()["x-ratelimit-reset-tokens"] == "8m20s"


def test_open_calls_are_counted() -> None:
    """A caller gets the calls that it may have open, and the next when one has ended."""
    clock = Clock()
    accounts = Accounts(RateTotals(), clock=clock, sleep=clock.sleep)
    limits = RateLimits(calls=2)
    opened = [accounts.enter("someone", limits) for _ in range(3)]
    with pytest.raises(RateLimitedError, match="at the same time: the limit is 2"):
        opened[-1].count_call()
    accounts.enter("another", limits).count_call()
    accounts.leave(opened.pop())
    opened[-1].count_call()


async def test_streams_take_turns_and_leave_a_quarter_to_other_calls() -> None:
    """Streams wait for their turns in order, while a quarter of the burst is left to others."""
    clock = Clock()
    account, totals = make_account(RateLimits(requests_per_s=4, request_burst=8), clock)
    for _ in range(6):
        await account.wait_for_turn()
    assert clock.now == 1000
    done: list[str] = []

    async def read(name: str) -> None:
        for _ in range(3):
            await account.wait_for_turn()
            done.append(name)

    async with asyncio.timeout(10):
        await asyncio.gather(read("a"), read("b"))
    assert done == ["a", "b"] * 3
    assert clock.now - 1000 == pytest.approx(1.5)
    assert totals.waited_s == pytest.approx(1.5)
    for _ in range(2):
        account.take_request(has_tokens=True)
    with pytest.raises(RateLimitedError):
        account.take_request(has_tokens=True)


async def test_a_stream_waits_for_tokens_and_is_told_so_if_it_must_go() -> None:
    """A stream of a caller with a debt waits until it is paid, but for what others get."""
    clock = Clock()
    account, totals = make_account(LIMITS, clock)
    account.force(200)
    refused = account.refuse_stream()
    assert refused.metadata["label"] == "TOKENS_PER_MINUTE"
    assert refused.retry_delay_s is not None
    assert 12.5 <= refused.retry_delay_s <= 15
    async with asyncio.timeout(10):
        await account.wait_for_turn()
    assert clock.now - 1000 == pytest.approx(12.5)
    assert totals.waited_s == pytest.approx(12.5)


async def test_a_long_wait_notices_changed_limits() -> None:
    """A stream that waits for an hour goes on soon after its caller got more."""
    clock = Clock()
    account, _ = make_account(RateLimits(tokens_per_min=1), clock)
    account.force(60)
    waiting = asyncio.ensure_future(account.wait_for_turn())
    await asyncio.sleep(0)
    account.set_limits(RateLimits())
    async with asyncio.timeout(10):
        await waiting
    assert clock.slept == [30.0]


def test_accounts_are_remembered_while_they_matter() -> None:
    """Strangers push out those that were idle for longest, and none with an open call."""
    clock = Clock()
    accounts = Accounts(RateTotals(), clock=clock, sleep=clock.sleep, idle_max=3)
    limits = RateLimits(requests_per_s=1)
    busy = accounts.enter("busy", limits)
    for name in ("first", "second"):
        account = accounts.enter(name, limits)
        account.take_request(has_tokens=False)
        accounts.leave(account)
    for number in range(2):
        accounts.leave(accounts.enter(f"stranger {number}", limits))
    assert len(accounts) == 4
    assert accounts.enter("busy", limits) is busy
    # It was forgotten, and may send again.
    accounts.enter("first", limits).take_request(has_tokens=False)
    with pytest.raises(RateLimitedError):
        accounts.enter("second", limits).take_request(has_tokens=False)


def test_many_addresses_do_not_fill_the_memory() -> None:
    """However many callers there are, so many are remembered as the server allows."""
    clock = Clock()
    accounts = Accounts(RateTotals(), clock=clock, sleep=clock.sleep, idle_max=100)
    for number in range(5000):
        accounts.leave(accounts.enter(f"10.0.{number >> 8}.{number & 255}", LIMITS))
    assert len(accounts) == 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (360, "6m0s"),
        (8.64, "8.64s"),
        (3630.25, "1h0m30.25s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """They look as OpenAI writes them."""
    assert duration(seconds) == text
