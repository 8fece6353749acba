"""The accounts of callers: what each may use, and how many are remembered."""

import asyncio

import pytest

from embedgrpc.engine.errors import RateLimitedError
from embedgrpc.server.caller import Caller, CallerLimits, Proof
from embedgrpc.server.rates.account import Account
from embedgrpc.server.rates.durations import duration
from embedgrpc.server.rates.limits import RateLimits, merge
from embedgrpc.server.rates.networks import network_of
from embedgrpc.server.rates.rates import Accounts, Rates
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
    assert dict(account.figures())["x-ratelimit-remaining-tokens"] == "95"
    account.hold(20)
    account.spend(200)
    account.release(20)
    assert dict(account.figures())["x-ratelimit-remaining-tokens"] == "0"
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
    assert dict(account.figures())["x-ratelimit-reset-tokens"] == "8m20s"


def test_open_calls_are_counted() -> None:
    """A caller gets the calls that it may have open, and the next when one has ended."""
    clock = Clock()
    accounts = Accounts(RateTotals(), clock=clock, sleep=clock.sleep)
    limits = RateLimits(calls=2)
    opened = [accounts.enter("someone", limits) for _ in range(3)]
    with pytest.raises(RateLimitedError, match="at the same time: the limit is 2"):
        opened[-1].count_call()
    accounts.enter("another", limits).count_call()
    opened.pop().leave()
    opened[-1].count_call()


async def test_streams_take_turns_and_leave_a_quarter_to_other_calls() -> None:
    """Streams wait for their turns in order, while a quarter of the burst is left to others."""
    clock = Clock()
    account, totals = make_account(RateLimits(requests_per_s=4, request_burst=8), clock)
    for _ in range(6):
        await account.wait_for_turn(has_tokens=True)
    assert clock.now == 1000
    done: list[str] = []

    async def read(name: str) -> None:
        for _ in range(3):
            await account.wait_for_turn(has_tokens=True)
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
    refused = account.refuse_stream(has_tokens=True)
    assert refused.metadata["label"] == "TOKENS_PER_MINUTE"
    assert refused.retry_delay_s is not None
    assert 12.5 <= refused.retry_delay_s <= 15
    async with asyncio.timeout(10):
        await account.wait_for_turn(has_tokens=True)
    assert clock.now - 1000 == pytest.approx(12.5)
    assert totals.waited_s == pytest.approx(12.5)


async def test_a_long_wait_notices_changed_limits() -> None:
    """A stream that waits for an hour goes on soon after its caller got more."""
    clock = Clock()
    account, _ = make_account(RateLimits(tokens_per_min=1), clock)
    account.force(60)
    waiting = asyncio.ensure_future(account.wait_for_turn(has_tokens=True))
    await asyncio.sleep(0)
    account.set_limits(RateLimits())
    async with asyncio.timeout(10):
        await waiting
    assert clock.slept == [30.0]


def test_accounts_are_remembered_while_they_matter() -> None:
    """Strangers push out those that were not used for a while, and none with an open call."""
    clock = Clock()
    accounts = Accounts(RateTotals(), clock=clock, sleep=clock.sleep, known_max=4)
    limits = RateLimits(requests_per_s=1)

    def come(name: str) -> Account:
        account = accounts.enter(name, limits)
        account.leave()
        return account

    busy = accounts.enter("busy", limits)
    first, second = come("first"), come("second")
    come("stranger 0")
    for number in range(1, 9):
        come(f"stranger {number}")
        assert come("second") is second
    assert len(accounts) == 4
    assert accounts.enter("busy", limits) is busy
    assert come("first") is not first


def test_open_calls_are_never_forgotten() -> None:
    """Where all accounts have open calls, there is room for one more."""
    clock = Clock()
    accounts = Accounts(RateTotals(), clock=clock, sleep=clock.sleep, known_max=3)
    opened = [accounts.enter(str(number), LIMITS) for number in range(5)]
    assert [accounts.enter(str(number), LIMITS) for number in range(5)] == opened
    assert len(accounts) == 5
    for account in 2 * opened:
        account.leave()
    accounts.enter("one more", LIMITS)
    assert len(accounts) <= 5


def test_a_caller_may_have_limits_of_its_own() -> None:
    """They replace the server's, one by one; 0 removes one."""
    server = RateLimits(requests_per_s=4, request_burst=8, tokens_per_min=600, calls=3)
    own = CallerLimits(requests_per_s=100, tokens_per_min=0)
    assert merge(server, own) == RateLimits(requests_per_s=100, calls=3)
    assert merge(server, CallerLimits(request_burst=20, max_calls=0)) == RateLimits(
        requests_per_s=4, request_burst=20, tokens_per_min=600
    )
    assert not merge(server, CallerLimits(requests_per_s=0, tokens_per_min=0, max_calls=0))


def test_callers_that_proved_who_they_are_have_accounts_of_their_own() -> None:
    """Neither does an address share one with a name, nor do addresses push names out."""
    rates = Rates(RateLimits(requests_per_s=1), clock=Clock())
    named, stranger = Caller("10.0.0.1", Proof.API_KEY), Caller("10.0.0.1")
    unlimited = Caller("free", Proof.API_KEY, limits=CallerLimits(requests_per_s=0))
    account, other = rates.enter(named), rates.enter(stranger)
    assert account is not None
    assert other is not None
    assert account is not other
    account.take_request(has_tokens=False)
    other.take_request(has_tokens=False)
    assert rates.enter(unlimited) is None
    account.leave()
    for number in range(20_000):
        caller = Caller(f"stranger {number}")
        one = rates.enter(caller)
        assert one is not None
        one.leave()
    assert rates.enter(named) is account
    assert rates.enter(stranger) is other


def test_the_addresses_of_one_network_share_an_account() -> None:
    """An IPv6 client has 2**64 addresses, which are one caller; IPv4 addresses are not."""
    rates = Rates(RateLimits(requests_per_s=1), clock=Clock())
    one, same, next_one = (
        rates.enter(Caller(f"ipv6:[2001:db8:0:{network}::{host}]"))
        for network, host in ((7, 1), (7, "beef"), (8, 1))
    )
    assert one is same
    assert one is not next_one
    assert network_of("ipv6:[fe80::1%eth0]") == "ipv6:fe80::/64"
    for caller in ("ipv4:10.0.0.1", "unix", "somebody", "ipv6:[no address]"):
        assert network_of(caller) == caller


def test_many_addresses_do_not_fill_the_memory() -> None:
    """However many callers there are, so many are remembered as the server allows."""
    clock = Clock()
    accounts = Accounts(RateTotals(), clock=clock, sleep=clock.sleep, known_max=100)
    for number in range(5000):
        accounts.enter(f"10.0.{number >> 8}.{number & 255}", LIMITS).leave()
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
