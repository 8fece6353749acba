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

from embedgrpc.engine.admission import Admission, estimate_tokens
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.fates import Fate
from embedgrpc.engine.ledger import Reservation
from embedgrpc.engine.waiting_line import WaitingLine
from embedgrpc.engine.work_class import WorkClass
from tests.engine.fakes import next_turn

INTERACTIVE, BULK = WorkClass.INTERACTIVE, WorkClass.BULK
MAX_INPUTS, MAX_TOKENS = 10, 100
NONE = dict.fromkeys(WorkClass, 0)


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        """Tells the time, in seconds."""
        return self.now


def admission_of(
    *,
    max_inputs: int = 1_000_000,
    max_tokens: int = 100_000_000,
    batch_tokens: int = 1_000_000,
    queued_batches: int = 1_000,
    clock: Clock | None = None,
) -> Admission:
    """Makes an admission that has room for anything that is not told."""
    return Admission(
        max_inputs=max_inputs,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        queued_batches=queued_batches,
        clock=clock or Clock(),
    )


def label_of(admission: Admission, tokens: int, *, caller: str = "", inputs: int = 1) -> str:
    """Tries to get in; tells why not, and leaves again if it could."""
    try:
        reservation = admission.admit(
            inputs=inputs, tokens=tokens, remaining_s=math.inf, caller=caller
        )
    except OverloadedError as refused:
        return refused.metadata["label"]
    reservation.release_all()
    return ""


class _AdmissionMachine(RuleBasedStateMachine):
    """Compares admission with sums over what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = admission_of(max_inputs=MAX_INPUTS, max_tokens=MAX_TOKENS)
        self.inside: dict[Reservation, tuple[int, int]] = {}
        self.admitted = 0
        self.refused = 0

    def sums(self, work_class: WorkClass) -> tuple[int, int]:
        inside = [held for one, held in self.inside.items() if one.work_class is work_class]
        return sum(inputs for inputs, _ in inside), sum(tokens for _, tokens in inside)

    @rule(
        inputs=st.integers(1, 14),
        tokens=st.integers(0, 140),
        work_class=st.sampled_from(WorkClass),
        caller=st.sampled_from("ab"),
    )
    def admit(self, inputs: int, tokens: int, work_class: WorkClass, caller: str) -> None:
        taken_inputs, taken_tokens = self.sums(work_class)
        fits = taken_inputs + inputs <= MAX_INPUTS and taken_tokens + tokens <= MAX_TOKENS
        reservation: Reservation | None = None
        if work_class is BULK:
            reservation = self.admission.admit_if_room(
                work_class, inputs=inputs, tokens=tokens, caller=caller
            )
        else:
            try:
                reservation = self.admission.admit(
                    inputs=inputs, tokens=tokens, remaining_s=math.inf, caller=caller
                )
            except OverloadedError:
                self.refused += inputs
        assert (reservation is not None) == (fits or not taken_inputs)
        if reservation is not None:
            self.inside[reservation] = (inputs, tokens)
            self.admitted += inputs

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), tokens=st.integers(0, 200))
    def settle(self, data: st.DataObject, tokens: int) -> None:
        reservation = data.draw(st.sampled_from(list(self.inside)))
        reservation.settle(tokens)
        if self.inside[reservation][0]:
            self.inside[reservation] = (self.inside[reservation][0], tokens)

    @precondition(lambda self: self.inside)
    @rule(
        data=st.data(),
        inputs=st.integers(0, 14),
        tokens=st.integers(0, 200),
        fate=st.sampled_from([Fate.ANSWERED, Fate.FAILED, Fate.EXPIRED]),
    )
    def release(self, data: st.DataObject, inputs: int, tokens: int, fate: Fate) -> None:
        """More than was taken cannot be given back."""
        reservation = data.draw(st.sampled_from(list(self.inside)))
        old_inputs, old_tokens = self.inside[reservation]
        reservation.release(inputs, tokens, fate)
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
        for work_class in WorkClass:
            ledger = self.admission.ledger
            counted = ledger.inputs(work_class), ledger.tokens(work_class)
            assert counted == self.sums(work_class)
            for caller in "ab":
                held = sum(
                    tokens
                    for one, (_, tokens) in self.inside.items()
                    if (one.work_class, one.caller) == (work_class, caller)
                )
                assert self.admission.ledger.held_tokens(work_class, caller) == held

    @invariant()
    def every_input_meets_one_fate(self) -> None:
        fates = self.admission.ledger.fates
        inside = sum(inputs for inputs, _ in self.inside.values())
        refused = sum(count for (_, fate), count in fates.items() if fate.startswith("refused"))
        assert refused == self.refused
        assert fates.total() - refused + inside == self.admitted

    def teardown(self) -> None:
        for reservation in self.inside:
            reservation.release_all()
        self.inside.clear()
        self.counts_are_sums()
        assert self.admission.ledger.is_empty


def test_bounds_in_any_history() -> None:
    """Room is what was taken and not given back; beyond it only an empty queue takes anything."""
    run_state_machine_as_test(_AdmissionMachine, settings=settings(max_examples=150, deadline=None))


async def test_returns_to_zero_with_threads() -> None:
    """Threads that settle while answers and cancels give room back leave nothing behind."""
    admission = admission_of()
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
                one.release(1, 10, Fate.ANSWERED)
                one.release(3, 99, Fate.FAILED)
            else:
                one.release_all()
            assert admission.inputs >= 0
        for each in running:
            each.result()
    assert admission.ledger.is_empty
    assert admission.ledger.fates.total() == 16_000


async def test_classes_do_not_share_room() -> None:
    """Bulk work that fills its bounds leaves interactive work all of its own."""
    admission = admission_of(max_inputs=10, max_tokens=100)
    assert admission.admit_if_room(BULK, inputs=10, tokens=100)
    assert admission.admit_if_room(BULK, inputs=1, tokens=1) is None
    admission.admit(inputs=10, tokens=100, remaining_s=math.inf)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    assert refused.value.metadata["label"] == "queue_full"
    assert "10 inputs" in refused.value.message


async def test_health_check_is_always_taken_in() -> None:
    """A canary is admitted although the queue is full, and gives its room back."""
    admission = admission_of(max_inputs=1, max_tokens=1)
    admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    canary = admission.admit_always()
    assert admission.inputs == 2
    canary.release_all()
    assert admission.inputs == 1


def test_short_call_does_not_wait_for_the_whole_of_a_long_one() -> None:
    """Of a job ahead only as much counts as the call has itself: jobs take turns."""
    admission = admission_of(batch_tokens=100, queued_batches=4)
    admission.admit(inputs=1000, tokens=100_000, remaining_s=math.inf)
    assert label_of(admission, 20) == ""
    assert label_of(admission, 1_000) == ""
    assert label_of(admission, 100_000) == ""


def test_queue_of_many_batches_is_full() -> None:
    """When more batches than allowed are ahead of a call, it is refused."""
    admission = admission_of(batch_tokens=100, queued_batches=4)
    for _ in range(21):
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf)
    assert label_of(admission, 20) == "queue_full"


def test_long_call_waits_for_a_few_of_its_kind() -> None:
    """A call may wait for four times its own work, however much that is."""
    admission = admission_of(batch_tokens=100, queued_batches=4)
    for _ in range(5):
        admission.admit(inputs=50, tokens=5000, remaining_s=math.inf)
    assert label_of(admission, 5000) == "queue_full"
    assert label_of(admission, 10) == ""


def test_overload_keeps_the_queue_short_until_it_is_over() -> None:
    """Once the queue was full, calls get in while it is short, until none was refused for 1 s."""
    clock = Clock()
    admission = admission_of(batch_tokens=100, queued_batches=10, clock=clock)
    inside = [admission.admit(inputs=1, tokens=20, remaining_s=math.inf) for _ in range(51)]
    assert label_of(admission, 20) == "queue_full"
    for one in inside[:20]:
        one.release(1, 20, Fate.ANSWERED)
    clock.now += 0.9
    assert label_of(admission, 20) == "overloaded"
    for one in inside[20:43]:
        one.release(1, 20, Fate.ANSWERED)
    assert label_of(admission, 20) == ""
    # Nobody was refused for a second: a burst finds a long queue again.
    clock.now += 1.1
    for _ in range(20):
        assert label_of(admission, 20) == ""
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf)
    assert admission.ledger.fates[INTERACTIVE, Fate.REFUSED_FULL] == 1
    assert admission.ledger.fates[INTERACTIVE, Fate.REFUSED_OVERLOADED] == 1


def test_refusals_of_an_overload_say_the_same() -> None:
    """What is told of the limit does not depend on the call, so that it need be written once."""
    admission = admission_of(batch_tokens=100, queued_batches=10, clock=Clock())
    for _ in range(51):
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf)
    assert label_of(admission, 20) == "queue_full"
    told = set()
    for tokens in (18, 20, 25):
        with pytest.raises(OverloadedError) as refused:
            admission.admit(inputs=1, tokens=tokens, remaining_s=math.inf)
        told.add(refused.value.message)
    (message,) = told
    assert "150 tokens" in message


def test_modest_caller_gets_in_while_another_overloads() -> None:
    """Of another caller's calls no more count than the own: who sends few is not refused."""
    admission = admission_of(batch_tokens=100, queued_batches=4)
    for _ in range(21):
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf, caller="flood")
    assert label_of(admission, 20, caller="flood") == "queue_full"
    assert label_of(admission, 20, caller="modest") == ""
    assert label_of(admission, 20, caller="flood") == "overloaded"


def test_streams_that_hurry_leave_room_for_calls() -> None:
    """Interactive work that can wait gets in only while the queue is short."""
    admission = admission_of(batch_tokens=100, queued_batches=100)
    taken = 0
    while admission.admit_if_room(INTERACTIVE, inputs=1, tokens=20):
        taken += 1
    assert taken == 8
    assert label_of(admission, 20) == ""


async def test_work_waits_in_order() -> None:
    """A small job that came later does not overtake a large one that waits for room."""
    admission = admission_of(max_inputs=10, max_tokens=1000)
    line = WaitingLine(admission)
    inside = [await line.enter(BULK, inputs=5, tokens=1, caller="") for _ in range(2)]
    order: list[int] = []

    async def wait(number: int, inputs: int) -> Reservation:
        reservation = await line.enter(BULK, inputs=inputs, tokens=1, caller="")
        order.append(number)
        return reservation

    sizes = [8, 1, 1, 9]
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(wait(*one)) for one in enumerate(sizes)]
        await next_turn()
        inside[0].release(5, 1, Fate.ANSWERED)
        for _ in range(8):
            await next_turn()
        assert order == []
        inside[1].release(5, 1, Fate.ANSWERED)
        first = await waiting[0]
        await asyncio.gather(*waiting[1:3])
        assert order == [0, 1, 2]
        first.release(4, 0, Fate.ANSWERED)
        first.release(4, 1, Fate.ANSWERED)
        for _ in range(8):
            await next_turn()
        assert not waiting[3].done()
        (await waiting[1]).release_all()
        await waiting[3]
    assert order == [0, 1, 2, 3]
    assert admission.inputs == 10


async def test_caller_with_least_inside_goes_in_first() -> None:
    """A stream beside eight of another caller gets every other place, not every ninth."""
    admission = admission_of(max_inputs=4)
    line = WaitingLine(admission)
    order: list[str] = []
    inside: list[Reservation] = []

    async def stream(caller: str) -> None:
        for _ in range(6):
            inside.append(await line.enter(BULK, inputs=1, tokens=10, caller=caller))
            order.append(caller)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(stream("many"))
        tasks.create_task(stream("one"))
        for _ in range(54):
            while not inside:
                await next_turn()
            for _ in range(4):
                await next_turn()
            inside.pop(0).release(1, 10, Fate.ANSWERED)
    assert len(order) == 54
    assert order[:16].count("one") == 6


async def test_cancelled_waiter_lets_the_next_one_in() -> None:
    """A stream that ends while it waits for room takes none, and holds nobody up."""
    admission = admission_of(max_inputs=2, max_tokens=1000)
    line = WaitingLine(admission)
    inside = await line.enter(BULK, inputs=1, tokens=1, caller="")
    large = asyncio.create_task(line.enter(BULK, inputs=2, tokens=1, caller=""))
    small = asyncio.create_task(line.enter(BULK, inputs=1, tokens=1, caller=""))
    await next_turn()
    large.cancel()
    reservation = await small
    with pytest.raises(asyncio.CancelledError):
        await large
    assert (admission.inputs, reservation.inputs) == (2, 1)
    inside.release_all()
    reservation.release_all()
    assert admission.inputs == 0


async def test_waiter_cancelled_as_it_got_in_gives_its_room_back() -> None:
    """Room that was given to a stream that left in the same moment is free again."""
    admission = admission_of(max_inputs=1)
    line = WaitingLine(admission)
    inside = await line.enter(BULK, inputs=1, tokens=1, caller="")
    waiting = asyncio.create_task(line.enter(BULK, inputs=1, tokens=1, caller=""))
    await next_turn()
    inside.release_all()
    assert admission.inputs == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert admission.inputs == 0


async def test_waiter_cancelled_before_there_was_room_gets_none() -> None:
    """Room that comes free in the moment in which a stream leaves goes to the next one."""
    admission = admission_of(max_inputs=4)
    line = WaitingLine(admission)
    inside = await line.enter(BULK, inputs=4, tokens=4, caller="a")
    gone = asyncio.create_task(line.enter(BULK, inputs=3, tokens=3, caller="b"))
    kept = asyncio.create_task(line.enter(BULK, inputs=2, tokens=2, caller="b"))
    await next_turn()
    gone.cancel()
    inside.release(4, 4, Fate.ANSWERED)
    assert (await kept).inputs == 2
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert admission.inputs == 2


async def test_job_beyond_the_bounds_runs_alone() -> None:
    """A bulk job larger than the bounds waits for an empty queue, and is let in then."""
    admission = admission_of(max_inputs=2, max_tokens=10)
    line = WaitingLine(admission)
    inside = await line.enter(BULK, inputs=1, tokens=1, caller="")
    huge = asyncio.create_task(line.enter(BULK, inputs=50, tokens=500, caller=""))
    await next_turn()
    assert not huge.done()
    inside.release_all()
    assert (await huge).inputs == 50


@pytest.mark.parametrize(("beside_bulk", "seconds"), [(False, 5.0), (True, 6.25)])
def test_unreachable_deadline_is_refused(beside_bulk: bool, seconds: float) -> None:  # noqa: FBT001 - pytest passes it by name
    """A call that would outlast its deadline is refused before any work is done for it."""
    admission = admission_of()
    if beside_bulk:
        assert admission.admit_if_room(BULK, inputs=1, tokens=10)
    admission.admit(inputs=1, tokens=2500, remaining_s=0.001)
    admission.drain_rate.add(tokens=1000, seconds=1)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=2500, remaining_s=seconds - 0.1)
    assert refused.value.metadata == {"label": "deadline_unreachable"}
    assert refused.value.retry_delay_s is not None
    assert 0.4 * seconds <= refused.value.retry_delay_s <= 0.6 * seconds
    assert admission.admit(inputs=1, tokens=2500, remaining_s=seconds + 0.1).inputs == 1
    assert admission.ledger.fates[INTERACTIVE, Fate.REFUSED_LATE] == 1


def test_late_calls_are_no_overload() -> None:
    """Callers with impossible deadlines do not shorten the queue for the others."""
    admission = admission_of(batch_tokens=100, queued_batches=100)
    for _ in range(50):
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf)
    admission.drain_rate.add(tokens=1000, seconds=1)
    with pytest.raises(OverloadedError):
        admission.admit(inputs=1, tokens=20, remaining_s=0.01)
    assert label_of(admission, 20) == ""


def test_drain_rate_is_a_moving_average() -> None:
    """A batch counts for a tenth of what is known of the rate; long ones for more."""
    admission = admission_of()
    for _ in range(200):
        admission.drain_rate.add(tokens=1000, seconds=1)
    admission.drain_rate.add(tokens=0, seconds=1)
    assert admission.seconds(9000) == pytest.approx(10, rel=0.01)


@given(
    tokens=st.integers(0, 10**7),
    rate=st.integers(1, 10**6),
    seconds=st.floats(0, 100, allow_subnormal=False),
)
@settings(deadline=None)
def test_retry_delay_is_bounded(tokens: int, rate: int, seconds: float) -> None:
    """Nobody is told to come back at once, nor in an hour."""
    admission = admission_of(max_inputs=2, max_tokens=1)
    admission.drain_rate.add(rate, seconds)
    admission.admit(inputs=2, tokens=tokens, remaining_s=math.inf)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    assert refused.value.retry_delay_s is not None
    assert 0.08 <= refused.value.retry_delay_s <= 36


def test_retry_delays_are_spread() -> None:
    """Callers that are refused together do not all come back together."""
    admission = admission_of(max_inputs=1, max_tokens=1)
    assert len({admission.retry_delay_s() for _ in range(20)}) > 10


@given(
    characters=st.integers(0, 10**6), inputs=st.integers(1, 1000), max_tokens=st.integers(1, 8192)
)
def test_estimate_is_bounded(characters: int, inputs: int, max_tokens: int) -> None:
    """No guess is above what the model can read."""
    guess = estimate_tokens(characters, inputs, max_tokens)
    assert 0 < guess <= inputs * max_tokens
