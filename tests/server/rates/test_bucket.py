"""How much a bucket admits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedgrpc.server.rates.bucket import Bucket

CAPACITY, PER_S = 10.0, 2.0
# A pause in seconds, an estimate, and what is used in the end.
CALLS = st.lists(
    st.tuples(
        st.floats(0, 20),
        st.integers(0, 30),
        st.integers(0, 60),
    ),
    max_size=60,
)


@given(pauses=st.lists(st.floats(0, 3), max_size=60))
def test_never_more_than_the_burst_and_the_rate(pauses: list[float]) -> None:
    """In every stretch of time, at most the burst plus the rate times the time is admitted."""
    bucket = Bucket(CAPACITY, PER_S, now := 0.0)
    admitted: list[float] = []
    for pause in pauses:
        now += pause
        admitted += [now] * bucket.try_take(1, now)
    for first, begin in enumerate(admitted):
        for last in range(first, len(admitted)):
            most = CAPACITY + PER_S * (admitted[last] - begin)
            assert last - first + 1 <= most + 1e-3


@given(calls=CALLS)
def test_what_is_used_stays_within_the_rate(calls: list[tuple[float, int, int]]) -> None:
    """Once settled, the use is the burst plus the rate, beyond which only one call can reach.

    A call takes its estimate, and is settled with what it used before the next one comes.
    """
    bucket = Bucket(CAPACITY, PER_S, now := 0.0)
    total = 0
    for pause, estimate, used in calls:
        now += pause
        if not bucket.try_take(estimate, now):
            continue
        # What this call has left of the burst and the rate, it may exceed by itself.
        assert total <= CAPACITY + PER_S * now + 1e-3
        bucket.give_back(estimate, now)
        bucket.take(used, now)
        total += used
        assert bucket.level(now) <= CAPACITY + PER_S * now - total + 1e-3


@given(calls=CALLS)
def test_what_is_given_back_leaves_no_trace(calls: list[tuple[float, int, int]]) -> None:
    """A call that uses nothing in the end costs nothing."""
    bucket, other = Bucket(CAPACITY, PER_S, 0.0), Bucket(CAPACITY, PER_S, 0.0)
    now = 0.0
    for pause, estimate, used in calls:
        now += pause
        bucket.take(estimate, now)
        bucket.give_back(estimate, now)
        bucket.take(used, now)
        other.take(used, now)
        assert bucket.level(now) == pytest.approx(other.level(now), abs=1e-6)


@given(amount=st.integers(1, 30), used=st.integers(0, 50))
def test_it_has_the_amount_after_the_stated_wait(amount: int, used: int) -> None:
    """A refused amount fits after `wait_s`, and not a millisecond before."""
    bucket = Bucket(CAPACITY, PER_S, 0.0)
    bucket.take(used, 0.0)
    wait_s = bucket.wait_s(amount, 0.0)
    assert bucket.has(amount, 0.0) == (wait_s == 0)
    if wait_s > 0.001:
        assert not bucket.has(amount, wait_s - 0.001)
    assert bucket.try_take(amount, wait_s)


def test_more_than_it_can_hold_needs_a_full_bucket_and_leaves_a_debt() -> None:
    """The first large call is admitted; the next waits until its debt is paid."""
    bucket = Bucket(CAPACITY, PER_S, 0.0)
    assert bucket.try_take(30, 0.0)
    assert bucket.level(0.0) == -20
    assert not bucket.try_take(1, 10.0)
    assert bucket.try_take(1, 10.5)


def test_it_never_holds_more_than_its_capacity() -> None:
    """Neither time nor what is given back fills it above its capacity."""
    bucket = Bucket(CAPACITY, PER_S, 0.0)
    bucket.take(4, 0.0)
    bucket.give_back(9, 0.0)
    assert bucket.level(1e9) == CAPACITY


def test_a_clock_that_stands_still_gives_nothing() -> None:
    """Only time fills it."""
    bucket = Bucket(CAPACITY, PER_S, 5.0)
    bucket.take(10, 5.0)
    assert bucket.level(5.0) == bucket.level(4.0) == 0


def test_changed_limits_keep_what_was_used() -> None:
    """A caller does not get a full bucket when its limits change."""
    bucket = Bucket(CAPACITY, PER_S, 0.0)
    bucket.take(4, 0.0)
    bucket.change(100.0, 50.0, 0.0)
    assert bucket.level(0.0) == 96
    assert bucket.level(0.05) == 98.5
