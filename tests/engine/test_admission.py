import asyncio
import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from embedgrpc.engine.admission import Admission, Reservation, estimate_tokens
from embedgrpc.engine.errors import OverloadedError
from tests.engine.fakes import next_turn

MAX_INPUTS, MAX_TOKENS = 10, 100


class _AdmissionMachine(RuleBasedStateMachine):
    """Compares admission of interactive work with sums over what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(max_inputs=MAX_INPUTS, max_tokens=MAX_TOKENS)
        self.inside: dict[Reservation, tuple[int, int]] = {}

    def sums(self) -> tuple[int, int]:
        inside = self.inside.values()
        return sum(inputs for inputs, _ in inside), sum(tokens for _, tokens in inside)

    @rule(inputs=st.integers(1, 14), tokens=st.integers(0, 140))
    def admit(self, inputs: int, tokens: int) -> None:
        taken_inputs, taken_tokens = self.sums()
        fits = taken_inputs + inputs <= MAX_INPUTS and taken_tokens + tokens <= MAX_TOKENS
        try:
            reservation = self.admission.admit(inputs=inputs, tokens=tokens, remaining_s=math.inf)
        except OverloadedError:
            assert taken_inputs
            assert not fits
        else:
            assert fits or not taken_inputs
            self.inside[reservation] = (inputs, tokens)

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), tokens=st.integers(0, 200))
    def settle(self, data: st.DataObject, tokens: int) -> None:
        reservation = data.draw(st.sampled_from(list(self.inside)))
        reservation.settle(tokens)
        if self.inside[reservation][0]:
            self.inside[reservation] = (self.inside[reservation][0], tokens)

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), inputs=st.integers(0, 14), tokens=st.integers(0, 200))
    def release(self, data: st.DataObject, inputs: int, tokens: int) -> None:
        """More than was taken cannot be given back."""
        reservation = data.draw(st.sampled_from(list(self.inside)))
        old_inputs, old_tokens = self.inside[reservation]
        reservation.release(inputs, tokens)
        left = max(old_inputs - inputs, 0)
        self.inside[reservation] = (left, max(old_tokens - tokens, 0) if left else 0)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        reservation = data.draw(st.sampled_from(list(self.inside)))
        reservation.release_all()
        self.inside[reservation] = (0, 0)

    @invariant()
    def counts_are_sums(self) -> None:
        assert (self.admission._inputs[False], self.admission._tokens[False]) == self.sums()
        assert self.admission.inputs == self.sums()[0]

    def teardown(self) -> None:
        for reservation in self.inside:
            reservation.release_all()
        self.inside.clear()
        self.counts_are_sums()


def test_bounds_in_any_history() -> None:
    """Room is what was taken and not given back; beyond it only an empty queue takes anything."""
    run_state_machine_as_test(_AdmissionMachine, settings=settings(max_examples=150, deadline=None))


async def test_returns_to_zero_with_threads() -> None:
    """Threads that settle while answers and cancels give room back leave nothing behind."""
    admission = Admission(max_inputs=100_000, max_tokens=10_000_000)
    source = random.Random(4)  # noqa: S311 - no secret
    reservations = [admission.admit(inputs=4, tokens=40, remaining_s=math.inf) for _ in range(4000)]
    settled = reservations * 2
    source.shuffle(settled)
    together = threading.Barrier(4)

    def settle(part: list[Reservation]) -> None:
        together.wait()
        for one in part:
            one.settle(77)

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(settle, settled[first::3]) for first in range(3)]
        together.wait()
        for position, one in enumerate(reservations):
            if position % 3:
                one.release(1, 10)
                one.release(3, 99)
            else:
                one.release_all()
            assert admission.inputs >= 0
        for each in running:
            each.result()
    assert admission._inputs == {False: 0, True: 0}
    assert admission._tokens == {False: 0, True: 0}


async def test_classes_do_not_share_room() -> None:
    """Bulk work that fills its bounds leaves interactive work all of its own."""
    admission = Admission(max_inputs=10, max_tokens=100)
    await admission.admit_bulk(inputs=10, tokens=100)
    admission.admit(inputs=10, tokens=100, remaining_s=math.inf)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    assert refused.value.metadata["label"] == "queue_full"
    assert "10 inputs" in refused.value.message


async def test_health_check_is_always_taken_in() -> None:
    """A canary is admitted although the queue is full, and gives its room back."""
    admission = Admission(max_inputs=1, max_tokens=1)
    admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    canary = admission.admit_always()
    assert admission.inputs == 2
    canary.release_all()
    assert admission.inputs == 1


async def test_bulk_is_served_in_order() -> None:
    """A small job that came later does not overtake a large one that waits for room."""
    admission = Admission(max_inputs=10, max_tokens=1000)
    inside = [await admission.admit_bulk(inputs=5, tokens=1) for _ in range(2)]
    order: list[int] = []

    async def wait(number: int, inputs: int) -> Reservation:
        reservation = await admission.admit_bulk(inputs=inputs, tokens=1)
        order.append(number)
        return reservation

    sizes = [8, 1, 1, 9]
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(wait(*one)) for one in enumerate(sizes)]
        await next_turn()
        inside[0].release(5, 1)
        for _ in range(8):
            await next_turn()
        assert order == []
        inside[1].release(5, 1)
        first = await waiting[0]
        await asyncio.gather(*waiting[1:3])
        assert order == [0, 1, 2]
        first.release(4, 0)
        first.release(4, 1)
        for _ in range(8):
            await next_turn()
        assert not waiting[3].done()
        (await waiting[1]).release_all()
        await waiting[3]
    assert order == [0, 1, 2, 3]
    assert admission.inputs == 10


async def test_cancelled_waiter_lets_the_next_one_in() -> None:
    """A stream that ends while it waits for room takes none, and holds nobody up."""
    admission = Admission(max_inputs=2, max_tokens=1000)
    inside = await admission.admit_bulk(inputs=1, tokens=1)
    large = asyncio.create_task(admission.admit_bulk(inputs=2, tokens=1))
    small = asyncio.create_task(admission.admit_bulk(inputs=1, tokens=1))
    await next_turn()
    large.cancel()
    reservation = await small
    with pytest.raises(asyncio.CancelledError):
        await large
    assert (admission.inputs, reservation.inputs) == (2, 1)
    inside.release_all()
    reservation.release_all()
    assert admission.inputs == 0


async def test_job_beyond_the_bounds_runs_alone() -> None:
    """A bulk job larger than the bounds waits for an empty queue, and is let in then."""
    admission = Admission(max_inputs=2, max_tokens=10)
    inside = await admission.admit_bulk(inputs=1, tokens=1)
    huge = asyncio.create_task(admission.admit_bulk(inputs=50, tokens=500))
    await next_turn()
    assert not huge.done()
    inside.release_all()
    assert (await huge).inputs == 50


def test_unreachable_deadline_is_refused() -> None:
    """A call that the work ahead would outlast is refused before any work is done for it."""
    admission = Admission(max_inputs=100, max_tokens=100_000)
    admission.admit(inputs=1, tokens=5000, remaining_s=0.001)
    admission.drained(tokens=1000, seconds=1)
    assert admission.wait_s() == pytest.approx(5)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=1, remaining_s=4.9)
    assert refused.value.metadata == {"label": "deadline_unreachable"}
    assert refused.value.retry_delay_s is not None
    assert 4 <= refused.value.retry_delay_s <= 6
    assert admission.admit(inputs=1, tokens=1, remaining_s=5.1).inputs == 1


def test_drain_rate_is_a_moving_average() -> None:
    """One slow batch moves the prediction by a tenth of the way."""
    admission = Admission(max_inputs=100, max_tokens=100_000)
    admission.admit(inputs=1, tokens=9000, remaining_s=math.inf)
    admission.drained(tokens=1000, seconds=1)
    admission.drained(tokens=0, seconds=1)
    assert admission.wait_s() == pytest.approx(10)


@given(
    tokens=st.integers(0, 10**9),
    rate=st.integers(1, 10**6),
    seconds=st.floats(0, 100, allow_subnormal=False),
)
@settings(deadline=None)
def test_retry_delay_is_bounded(tokens: int, rate: int, seconds: float) -> None:
    """Nobody is told to come back at once, nor in an hour."""
    admission = Admission(max_inputs=2, max_tokens=1)
    admission.drained(rate, seconds)
    admission.admit(inputs=2, tokens=tokens, remaining_s=math.inf)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    assert refused.value.retry_delay_s is not None
    assert 0.08 <= refused.value.retry_delay_s <= 36


def test_retry_delays_are_spread() -> None:
    """Callers that are refused together do not all come back together."""
    admission = Admission(max_inputs=1, max_tokens=1)
    assert len({admission.retry_delay_s() for _ in range(20)}) > 10


@given(
    characters=st.integers(0, 10**6), inputs=st.integers(1, 1000), max_tokens=st.integers(1, 8192)
)
def test_estimate_is_bounded(characters: int, inputs: int, max_tokens: int) -> None:
    """No guess is above what the model can read."""
    guess = estimate_tokens(characters, inputs, max_tokens)
    assert 0 < guess <= inputs * max_tokens
