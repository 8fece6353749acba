import asyncio
import math
import random
import threading
from collections import Counter, deque
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

from embedgrpc.engine.admission.admission import Admission, estimate_tokens
from embedgrpc.engine.admission.ledger import Ledger, Reservation
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.admission.waiting_line import WaitingLine
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.work_class import WorkClass
from tests.engine.fakes import next_turn

INTERACTIVE, BULK = WorkClass.INTERACTIVE, WorkClass.BULK
MAX_INPUTS, MAX_TOKENS = 10, 100
# For how much one job counts at the most.
JOB_INPUTS, JOB_TOKENS = 7, 75
NONE = dict.fromkeys(WorkClass, 0)


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now


def admission_of(
    *,
    max_inputs: int = 1_000_000,
    max_tokens: int = 100_000_000,
    batch_tokens: int = 1_000_000,
    max_queue_s: float = 3600,
    tokens_per_s: float = 1_000_000,
    clock: Clock | None = None,
) -> Admission:
    """Return an admission without limits but those given."""
    admission = Admission(
        max_inputs=max_inputs,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        max_queue_s=max_queue_s,
        clock=clock or Clock(),
    )
    learn(admission, tokens_per_s)
    return admission


def learn(admission: Admission, tokens_per_s: float) -> None:
    """Teach an admission how fast work is done."""
    admission.drain_rate.add(10**9, 10**9 / tokens_per_s)


def label_of(admission: Admission, tokens: int, *, caller: str = "", inputs: int = 1) -> str:
    """Try to get in; return the label of the refusal, or release the room."""
    try:
        reservation = admission.admit(
            inputs=inputs, tokens=tokens, remaining_s=math.inf, caller=caller
        )
    except OverloadedError as refused:
        return refused.metadata["label"]
    reservation.release_all()
    return ""


class _AdmissionMachine(RuleBasedStateMachine):
    """Compares admission with sums over the accepted work."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = admission_of(max_inputs=MAX_INPUTS, max_tokens=MAX_TOKENS)
        self.inside: dict[Reservation, tuple[int, int]] = {}
        self.admitted = 0
        self.refused = 0

    def sums(self, work_class: WorkClass) -> tuple[int, int]:
        inside = [held for one, held in self.inside.items() if one.work_class is work_class]
        return sum(inputs for inputs, _ in inside), sum(tokens for _, tokens in inside)

    def rooms(self, work_class: WorkClass) -> tuple[int, int]:
        inside = [held for one, held in self.inside.items() if one.work_class is work_class]
        return (
            sum(min(inputs, JOB_INPUTS) for inputs, _ in inside),
            sum(min(tokens, JOB_TOKENS) for _, tokens in inside),
        )

    @rule(
        inputs=st.integers(1, 14),
        tokens=st.integers(0, 140),
        work_class=st.sampled_from(WorkClass),
        caller=st.sampled_from("ab"),
    )
    def admit(self, inputs: int, tokens: int, work_class: WorkClass, caller: str) -> None:
        taken_inputs, taken_tokens = self.rooms(work_class)
        fits = (
            taken_inputs + min(inputs, JOB_INPUTS) <= MAX_INPUTS
            and taken_tokens + min(tokens, JOB_TOKENS) <= MAX_TOKENS
        )
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
        outcome=st.sampled_from(
            [SequenceOutcome.ANSWERED, SequenceOutcome.FAILED, SequenceOutcome.EXPIRED]
        ),
    )
    def release(
        self, data: st.DataObject, inputs: int, tokens: int, outcome: SequenceOutcome
    ) -> None:
        """Releasing more than was reserved releases what is left."""
        reservation = data.draw(st.sampled_from(list(self.inside)))
        old_inputs, old_tokens = self.inside[reservation]
        reservation.release(inputs, tokens, outcome)
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
            assert ledger.room(work_class) == self.rooms(work_class)
            for caller in "ab":
                held = sum(
                    tokens
                    for one, (_, tokens) in self.inside.items()
                    if (one.work_class, one.caller) == (work_class, caller)
                )
                assert self.admission.ledger.held_tokens(work_class, caller) == held

    @invariant()
    def every_input_has_one_outcome(self) -> None:
        outcomes = self.admission.ledger.outcome_counts
        inside = sum(inputs for inputs, _ in self.inside.values())
        refused = sum(
            count for (_, outcome), count in outcomes.items() if outcome.startswith("refused")
        )
        assert refused == self.refused
        assert outcomes.total() - refused + inside == self.admitted

    def teardown(self) -> None:
        for reservation in self.inside:
            reservation.release_all()
        self.inside.clear()
        self.counts_are_sums()
        assert self.admission.ledger.is_empty


@pytest.mark.parametrize("histories", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_bounds_in_any_history(histories: int) -> None:
    """Room is what was reserved and not released; a large job counts for a part of the limits."""
    run_state_machine_as_test(
        _AdmissionMachine, settings=settings(max_examples=histories, deadline=None)
    )


async def test_returns_to_zero_with_threads() -> None:
    """Threads that settle while results and cancels release room leave nothing behind."""
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
                one.release(1, 10, SequenceOutcome.ANSWERED)
                one.release(3, 99, SequenceOutcome.FAILED)
            else:
                one.release_all()
            assert admission.inputs >= 0
        for each in running:
            each.result()
    assert admission.ledger.is_empty
    assert admission.ledger.outcome_counts.total() == 16_000


async def test_classes_do_not_share_room() -> None:
    """Bulk work that fills its limits leaves interactive work all of its own."""
    admission = admission_of(max_inputs=10, max_tokens=100)
    for _ in range(2):
        assert admission.admit_if_room(BULK, inputs=5, tokens=50)
    assert admission.admit_if_room(BULK, inputs=1, tokens=1) is None
    for _ in range(2):
        admission.admit(inputs=5, tokens=50, remaining_s=math.inf)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    assert refused.value.metadata["label"] == "QUEUE_FULL"
    assert "10 inputs" in refused.value.message


async def test_health_check_is_always_taken_in() -> None:
    """A health check is accepted although the queue is full, and releases its room."""
    admission = admission_of(max_inputs=1, max_tokens=1)
    admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    canary = admission.admit_always()
    assert admission.inputs == 2
    canary.release_all()
    assert admission.inputs == 1


async def test_job_beyond_the_bounds_runs_beside_a_health_check() -> None:
    """A job for which only an empty queue has room gets in although a health check is inside."""
    admission = admission_of(max_inputs=1, max_tokens=10)
    canary = admission.admit_always()
    huge = admission.admit(inputs=50, tokens=500, remaining_s=math.inf)
    assert label_of(admission, 1) == "QUEUE_FULL"
    huge.release_all()
    canary.release(1, 1, SequenceOutcome.ANSWERED)
    canary.release_all()
    call = admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    assert label_of(admission, 500, inputs=50) == "QUEUE_FULL"
    call.release_all()
    assert admission.ledger.is_empty


def test_call_beyond_the_bounds_is_not_refused_for_ever() -> None:
    """It gets in while others hold a quarter of the limits, and small calls find room beside it."""
    admission = admission_of(max_inputs=100, max_tokens=1000)
    small = deque(
        admission.admit(inputs=5, tokens=50, remaining_s=math.inf, caller="small") for _ in range(5)
    )
    huge = admission.admit(inputs=500, tokens=5000, remaining_s=math.inf, caller="huge")
    told: list[OverloadedError] = []
    huge.stop = told.append
    for _ in range(100):
        small.popleft().release_all()
        small.append(admission.admit(inputs=5, tokens=50, remaining_s=math.inf, caller="small"))
    assert not told
    assert huge.inputs == 500


def test_two_calls_beyond_the_bounds_are_not_inside_together() -> None:
    """The limits still bound what is held: a second one is refused until the first is done."""
    admission = admission_of(max_inputs=100, max_tokens=1000)
    first = admission.admit(inputs=500, tokens=5000, remaining_s=math.inf, caller="a")
    assert label_of(admission, 5000, inputs=500, caller="b") == "QUEUE_FULL"
    first.release(450, 4500, SequenceOutcome.ANSWERED)
    assert label_of(admission, 5000, inputs=500, caller="b") == "QUEUE_FULL"
    first.release(30, 300, SequenceOutcome.ANSWERED)
    assert label_of(admission, 5000, inputs=500, caller="b") == ""


def test_short_call_does_not_wait_for_the_whole_of_a_long_one() -> None:
    """A job ahead counts only as much as the call itself: jobs take turns."""
    admission = admission_of(batch_tokens=100, tokens_per_s=100, max_queue_s=4)
    admission.admit(inputs=1000, tokens=100_000, remaining_s=math.inf)
    assert label_of(admission, 20) == ""
    assert label_of(admission, 1_000) == ""
    assert label_of(admission, 100_000) == ""


def test_queue_of_many_seconds_is_full() -> None:
    """When more work than allowed is ahead of a call, it is refused."""
    admission = admission_of(batch_tokens=100, tokens_per_s=100, max_queue_s=4)
    for _ in range(21):
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf)
    assert label_of(admission, 20) == "QUEUE_FULL"


def test_long_call_waits_for_a_few_of_its_kind() -> None:
    """A call may wait for four times its own work, however much that is."""
    admission = admission_of(batch_tokens=100, tokens_per_s=100, max_queue_s=4)
    for _ in range(5):
        admission.admit(inputs=50, tokens=5000, remaining_s=math.inf)
    assert label_of(admission, 5000) == "QUEUE_FULL"
    assert label_of(admission, 10) == ""


def test_overload_keeps_the_queue_short_until_it_is_over() -> None:
    """After the queue was full, calls get in while it is short, until none is refused for 1 s."""
    clock = Clock()
    admission = admission_of(batch_tokens=100, tokens_per_s=100, max_queue_s=10, clock=clock)
    inside = [admission.admit(inputs=1, tokens=20, remaining_s=math.inf) for _ in range(51)]
    assert label_of(admission, 20) == "QUEUE_FULL"
    for one in inside[:20]:
        one.release(1, 20, SequenceOutcome.ANSWERED)
    clock.now += 0.9
    assert label_of(admission, 20) == "STANDING_QUEUE"
    for one in inside[20:43]:
        one.release(1, 20, SequenceOutcome.ANSWERED)
    assert label_of(admission, 20) == ""
    # No call was refused for a second: a burst finds a long queue again.
    clock.now += 1.1
    for _ in range(20):
        assert label_of(admission, 20) == ""
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf)
    assert admission.ledger.outcome_counts[INTERACTIVE, SequenceOutcome.REFUSED_FULL] == 1
    assert admission.ledger.outcome_counts[INTERACTIVE, SequenceOutcome.REFUSED_OVERLOADED] == 1


class Server:
    """Answers calls in order at a given rate, on a clock that is set by hand.

    A call's estimate is `estimate` times its true tokens.
    """

    def __init__(
        self,
        *,
        max_queue_s: float = 10,
        tokens_per_s: int = 1000,
        max_inputs: int = 1_000_000,
        estimate: float = 1,
    ) -> None:
        self.clock = Clock()
        self.admission = admission_of(
            batch_tokens=50,
            tokens_per_s=tokens_per_s,
            max_queue_s=max_queue_s,
            max_inputs=max_inputs,
            clock=self.clock,
        )
        self.tokens_per_s = tokens_per_s
        self.estimate = estimate
        self.inside: deque[Reservation] = deque()
        self._done = 0.0

    @property
    def queue_s(self) -> float:
        """Return how long it takes to answer what is inside."""
        return self.admission.ledger.tokens(INTERACTIVE) / self.tokens_per_s

    def offer(self, tokens: int = 20, *, inputs: int = 1, caller: str = "") -> str:
        """Send a call; return the label of its refusal, or nothing."""
        try:
            reservation = self.admission.admit(
                inputs=inputs,
                tokens=round(tokens * self.estimate),
                remaining_s=math.inf,
                caller=caller,
            )
        except OverloadedError as refused:
            return refused.metadata["label"]
        reservation.settle(tokens)
        self.inside.append(reservation)
        return ""

    def work(self, seconds: float) -> None:
        """Let some time pass."""
        self.clock.now += seconds
        self._done += seconds * self.tokens_per_s
        while self.inside and self.inside[0].tokens <= self._done:
            first = self.inside.popleft()
            self._done -= first.tokens
            first.release(1, first.tokens, SequenceOutcome.ANSWERED)
        if not self.inside:
            self._done = 0.0

    def load(self, share: float, seconds: float, *, caller: str = "") -> Counter[str]:
        """Send calls of 20 tokens at a share of the capacity; count the results."""
        labels: Counter[str] = Counter()
        calls = round(seconds * share * self.tokens_per_s / 20)
        for _ in range(calls):
            labels[self.offer(caller=caller)] += 1
            self.work(seconds / calls)
        return labels


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_burst_after_quiet_gets_in(share: float) -> None:
    """Nine seconds of work at once are accepted, and so is work that arrives meanwhile."""
    server = Server()
    server.work(5)
    assert {server.offer() for _ in range(450)} == {""}
    assert set(server.load(share, 20)) == {""}
    assert server.queue_s < 1


def test_burst_beyond_the_longest_wait_is_cut_off() -> None:
    """The part of a burst beyond `max_queue_s` is refused, and may be retried."""
    server = Server(max_queue_s=3)
    labels = Counter(server.offer() for _ in range(200))
    assert labels[""] == 151
    assert labels["QUEUE_FULL"] == 1
    assert labels["STANDING_QUEUE"] == 48
    server.work(1.2)
    assert {server.offer() for _ in range(50)} == {""}


@pytest.mark.parametrize("share", [1.3, 2, 5])
def test_lasting_overload_keeps_the_queue_short(share: float) -> None:
    """When more arrives than can be done for some seconds, the queue is kept short."""
    server = Server()
    server.load(share, 30)
    assert server.queue_s <= 0.1
    labels = server.load(share, 10)
    assert labels["QUEUE_FULL"] == 0
    assert labels[""] == pytest.approx(500, rel=0.05)
    assert labels["STANDING_QUEUE"] == pytest.approx(500 * (share - 1), rel=0.2)
    assert server.queue_s <= 0.1


@pytest.mark.parametrize("estimate", [0.3, 3])
@pytest.mark.parametrize("share", [1.3, 2])
def test_overload_is_noticed_however_wrong_the_estimates_are(share: float, estimate: float) -> None:
    """Digits and code have three times the estimated tokens; other texts have fewer."""
    server = Server(estimate=estimate)
    server.load(share, 30)
    labels = server.load(share, 10)
    assert labels["QUEUE_FULL"] == 0
    assert labels[""] == pytest.approx(500, rel=0.05)
    # A call that seems short counts as short a part of each job ahead.
    assert server.queue_s <= 0.3


@pytest.mark.parametrize("estimate", [0.3, 3])
def test_burst_drains_however_wrong_the_estimates_are(estimate: float) -> None:
    """Work beside a burst that drains gets in, even if it is overestimated threefold."""
    server = Server(estimate=estimate)
    assert {server.offer() for _ in range(450)} == {""}
    assert set(server.load(0.4, 20)) == {""}


def test_parts_of_a_job_are_done_as_they_were_estimated() -> None:
    """The parts of an estimate add up to it, whatever the true counts are."""
    ledger = admission_of().ledger
    job = ledger.reserve(INTERACTIVE, "", 7, 100)
    job.settle(9)
    done = []
    for inputs, tokens in [(1, 9), (0, 3), (3, 0), (2, 9)]:
        job.release(inputs, tokens, SequenceOutcome.ANSWERED)
        done.append(ledger.estimated_tokens_done(INTERACTIVE))
    assert done == [14, 14, 57, 85]
    job.release_all()
    job.release_all()
    assert ledger.estimated_tokens_done(INTERACTIVE) == 100


@pytest.mark.parametrize("waiting", [420, 450])
def test_calls_that_fit_into_no_queue_are_no_overload(waiting: int) -> None:
    """A caller whose calls are too large does not shorten the queue for others."""
    server = Server(max_inputs=1000)
    assert {server.offer() for _ in range(waiting)} == {""}
    for _ in range(10):
        assert server.offer(inputs=1000, caller="huge") == "QUEUE_FULL"
        server.work(0.5)
        assert {server.offer() for _ in range(10)} == {""}


def test_queue_full_of_inputs_is_an_overload() -> None:
    """A long queue with no room for a call of usual size is kept short from then on."""
    server = Server(max_inputs=100)
    assert {server.offer() for _ in range(100)} == {""}
    assert server.offer() == "QUEUE_FULL"
    server.work(0.9)
    assert server.offer() == "STANDING_QUEUE"


def test_queue_full_of_few_calls_is_no_overload() -> None:
    """After a refusal beside two large calls, small ones still get in as in any burst."""
    server = Server(max_inputs=1000)
    assert {server.offer(500, inputs=500) for _ in range(2)} == {""}
    assert server.offer(inputs=20) == "QUEUE_FULL"
    server.inside.popleft().release_all()
    assert {server.offer() for _ in range(20)} == {""}


def test_overload_is_noticed_before_the_queue_is_full() -> None:
    """At twice the load no call waits longer than some seconds, though ten are allowed."""
    server = Server()
    longest_s = 0.0
    for _ in range(50):
        server.load(2, 0.5)
        longest_s = max(longest_s, server.queue_s)
    assert 1 < longest_s < 4


def test_burst_after_an_overload_gets_in() -> None:
    """An overload that is over is forgotten."""
    server = Server()
    server.load(3, 20)
    server.work(2)
    assert {server.offer() for _ in range(450)} == {""}


def test_what_comes_while_a_refused_burst_drains_gets_in() -> None:
    """Few calls beside a long queue that drains are not refused until it is empty."""
    server = Server()
    refused = Counter(server.offer() for _ in range(1000))
    assert refused[""] == 501
    server.load(0.2, 2.5)
    assert set(server.load(0.2, 4)) == {""}
    assert server.queue_s > 3


@pytest.mark.parametrize(("callers", "tokens"), [(33, 250), (5, 3000)])
def test_callers_who_wait_for_their_answers_are_no_overload(callers: int, tokens: int) -> None:
    """Callers that send the next call after each answer keep a long queue, and get in."""
    server = Server()
    for _ in range(callers):
        assert server.offer(tokens) == ""
    for _ in range(100):
        server.work(tokens / server.tokens_per_s)
        assert server.offer(tokens) == ""


def test_steady_queue_of_less_than_a_second_is_no_overload() -> None:
    """Callers with many short calls in flight, which resend when answered, get in."""
    server = Server()
    for _ in range(45):
        assert server.offer() == ""
    for _ in range(1000):
        server.work(0.02)
        assert server.offer() == ""


def test_before_any_batch_the_rate_is_guessed() -> None:
    """Right after the start a burst is accepted, but not beyond a sane guess."""
    admission = Admission(
        max_inputs=10**6, max_tokens=10**9, batch_tokens=512, max_queue_s=10, clock=Clock()
    )
    # The guess is 50 ms per batch.
    assert admission.seconds(512) == pytest.approx(0.05)
    taken = 0
    while label_of(admission, 200) == "":
        admission.admit(inputs=1, tokens=200, remaining_s=math.inf)
        taken += 200
    assert taken == pytest.approx(102_400, rel=0.01)


def test_first_slow_run_is_not_taken_for_the_rule() -> None:
    """One run of few tokens hardly moves the guess; full batches soon replace it."""
    admission = Admission(
        max_inputs=10**6, max_tokens=10**9, batch_tokens=512, max_queue_s=10, clock=Clock()
    )
    admission.drain_rate.add(40, 0.1)
    assert admission.seconds(512) < 0.2
    for _ in range(5):
        admission.drain_rate.add(512, 1.0)
    assert admission.seconds(512) == pytest.approx(1.0, rel=0.2)


def test_refusals_of_an_overload_say_the_same() -> None:
    """The message about the limit is the same for all calls, so that it is built only once."""
    admission = admission_of(batch_tokens=100, tokens_per_s=100, max_queue_s=10)
    for _ in range(51):
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf)
    assert label_of(admission, 20) == "QUEUE_FULL"
    told = set()
    for tokens in (18, 20, 25):
        with pytest.raises(OverloadedError) as refused:
            admission.admit(inputs=1, tokens=tokens, remaining_s=math.inf)
        told.add(refused.value.message)
    (message,) = told
    assert "150 tokens" in message


def test_modest_caller_gets_in_while_another_overloads() -> None:
    """Another caller's calls count at most as much as one's own: a modest caller gets in."""
    admission = admission_of(batch_tokens=100, tokens_per_s=100, max_queue_s=4)
    for _ in range(21):
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf, caller="flood")
    assert label_of(admission, 20, caller="flood") == "QUEUE_FULL"
    assert label_of(admission, 20, caller="modest") == ""
    assert label_of(admission, 20, caller="flood") == "STANDING_QUEUE"


def test_streams_that_hurry_leave_room_for_calls() -> None:
    """Interactive work that can wait gets in only while the queue is short."""
    admission = admission_of(batch_tokens=100, tokens_per_s=100, max_queue_s=100)
    taken = 0
    while admission.admit_if_room(INTERACTIVE, inputs=1, tokens=20):
        taken += 1
    assert taken == 8
    assert label_of(admission, 20) == ""


async def test_work_waits_in_order() -> None:
    """A small job that came later does not overtake a large one that waits for room."""
    admission = admission_of(max_inputs=100, max_tokens=1000)
    line = WaitingLine(admission)
    inside = [await line.enter(BULK, inputs=50, tokens=1, caller="") for _ in range(2)]
    order: list[int] = []

    async def wait(number: int, inputs: int) -> Reservation:
        reservation = await line.enter(BULK, inputs=inputs, tokens=1, caller="")
        order.append(number)
        return reservation

    sizes = [70, 15, 15, 75]
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(wait(*one)) for one in enumerate(sizes)]
        await next_turn()
        inside[0].release(50, 1, SequenceOutcome.ANSWERED)
        for _ in range(8):
            await next_turn()
        assert order == []
        inside[1].release(50, 1, SequenceOutcome.ANSWERED)
        first = await waiting[0]
        await asyncio.gather(*waiting[1:3])
        assert order == [0, 1, 2]
        first.release(35, 0, SequenceOutcome.ANSWERED)
        first.release(35, 1, SequenceOutcome.ANSWERED)
        for _ in range(8):
            await next_turn()
        assert not waiting[3].done()
        (await waiting[1]).release_all()
        await waiting[3]
    assert order == [0, 1, 2, 3]
    assert admission.inputs == 90


async def test_large_work_that_waits_is_not_overtaken_by_calls_for_ever() -> None:
    """After the longest wait of a call, room is held back for an interactive stream."""
    clock = Clock()
    admission = admission_of(max_inputs=100, max_tokens=1000, max_queue_s=10, clock=clock)

    def call() -> Reservation:
        return admission.admit(inputs=10, tokens=100, remaining_s=math.inf, caller="calls")

    inside = deque(call() for _ in range(10))
    waiting = asyncio.create_task(
        WaitingLine(admission).enter(INTERACTIVE, inputs=500, tokens=5000, caller="stream")
    )
    await next_turn()
    refused_at = []
    while not waiting.done():
        inside.popleft().release_all()
        clock.now += 0.5
        try:
            inside.append(call())
        except OverloadedError:
            refused_at.append(clock.now - Clock.now)
        await next_turn()
    assert 10 <= min(refused_at) <= max(refused_at) < 15
    assert (await waiting).inputs == 500
    # It counts for three quarters of the limits: the rest is for calls again.
    inside.popleft().release_all()
    call()


async def test_no_room_is_held_back_for_work_that_has_left() -> None:
    """When the last one that waits gives up, calls get in as before."""
    clock = Clock()
    admission = admission_of(max_inputs=100, max_tokens=1000, max_queue_s=10, clock=clock)
    inside = [admission.admit(inputs=40, tokens=1, remaining_s=math.inf) for _ in range(2)]
    waiting = asyncio.create_task(
        WaitingLine(admission).enter(INTERACTIVE, inputs=75, tokens=1, caller="stream")
    )
    await next_turn()
    clock.now += 10
    inside.pop().release_all()
    assert label_of(admission, 1, inputs=10) == "QUEUE_FULL"
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert label_of(admission, 1, inputs=10) == ""


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
            inside.pop(0).release(1, 10, SequenceOutcome.ANSWERED)
    assert len(order) == 54
    assert order[:16].count("one") == 6


async def test_cancelled_waiter_lets_the_next_one_in() -> None:
    """A stream that ends while it waits for room holds no room and delays no other."""
    admission = admission_of(max_inputs=20, max_tokens=1000)
    line = WaitingLine(admission)
    inside = await line.enter(BULK, inputs=10, tokens=1, caller="")
    large = asyncio.create_task(line.enter(BULK, inputs=15, tokens=1, caller=""))
    small = asyncio.create_task(line.enter(BULK, inputs=10, tokens=1, caller=""))
    await next_turn()
    large.cancel()
    reservation = await small
    with pytest.raises(asyncio.CancelledError):
        await large
    assert (admission.inputs, reservation.inputs) == (20, 10)
    inside.release_all()
    reservation.release_all()
    assert admission.inputs == 0


async def test_waiter_cancelled_as_it_got_in_gives_its_room_back() -> None:
    """Room given to a stream that left at the same moment is free again."""
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
    """Room that becomes free when a stream leaves goes to the next one."""
    admission = admission_of(max_inputs=4)
    line = WaitingLine(admission)
    inside = await line.enter(BULK, inputs=4, tokens=4, caller="a")
    gone = asyncio.create_task(line.enter(BULK, inputs=3, tokens=3, caller="b"))
    kept = asyncio.create_task(line.enter(BULK, inputs=2, tokens=2, caller="b"))
    await next_turn()
    gone.cancel()
    inside.release(4, 4, SequenceOutcome.ANSWERED)
    assert (await kept).inputs == 2
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert admission.inputs == 2


async def test_job_beyond_the_bounds_runs_alone() -> None:
    """A bulk job larger than the limits waits until others hold little, then gets in."""
    admission = admission_of(max_inputs=8, max_tokens=40)
    line = WaitingLine(admission)
    inside = await line.enter(BULK, inputs=3, tokens=1, caller="")
    huge = asyncio.create_task(line.enter(BULK, inputs=50, tokens=500, caller=""))
    await next_turn()
    assert not huge.done()
    inside.release_all()
    assert (await huge).inputs == 50


@pytest.mark.parametrize(("beside_bulk", "seconds"), [(False, 5.0), (True, 6.25)])
def test_unreachable_deadline_is_refused(beside_bulk: bool, seconds: float) -> None:  # noqa: FBT001 - pytest passes it by name
    """A call that would outlast its deadline is refused before any work is done for it."""
    admission = admission_of(tokens_per_s=1000)
    if beside_bulk:
        assert admission.admit_if_room(BULK, inputs=1, tokens=10)
    admission.admit(inputs=1, tokens=2500, remaining_s=0.001)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=2500, remaining_s=seconds - 0.1)
    assert refused.value.metadata == {"label": "DEADLINE_UNREACHABLE"}
    assert refused.value.retry_delay_s is not None
    assert 0.4 * seconds <= refused.value.retry_delay_s <= 0.6 * seconds
    assert admission.admit(inputs=1, tokens=2500, remaining_s=seconds + 0.1).inputs == 1
    assert admission.ledger.outcome_counts[INTERACTIVE, SequenceOutcome.REFUSED_LATE] == 1


def test_work_ahead_counts_a_turn_of_every_caller() -> None:
    """Ahead of a job are, per other caller, at most as many tokens as its own caller's."""
    ledger = Ledger()
    for caller, count, tokens in (("many", 5, 10), ("few", 1, 4), ("own", 2, 6)):
        for _ in range(count):
            ledger.reserve(INTERACTIVE, caller, 1, tokens)
    # Own jobs: 6 + 6. Of "many" no more than those and the job itself, 22; of "few" all 4.
    assert ledger.ahead(INTERACTIVE, "own", 10, limit=math.inf) == 12 + 22 + 4
    assert ledger.ahead(INTERACTIVE, "new", 3, limit=math.inf) == 3 + 3 + 3
    assert ledger.ahead(BULK, "new", 3, limit=math.inf) == 0


def test_with_nothing_ahead_a_call_is_tried() -> None:
    """However slow the model seems, a lone call runs: otherwise the guess would stay wrong."""
    admission = admission_of(tokens_per_s=1, max_queue_s=1)
    first = admission.admit(inputs=1, tokens=1000, remaining_s=0.01)
    with pytest.raises(OverloadedError):
        admission.admit(inputs=1, tokens=1000, remaining_s=0.01)
    first.release_all()
    assert admission.admit(inputs=1, tokens=1000, remaining_s=0.01).inputs == 1


def test_late_calls_are_no_overload() -> None:
    """Callers with impossible deadlines do not shorten the queue for the others."""
    admission = admission_of(batch_tokens=100, tokens_per_s=1000, max_queue_s=10)
    for _ in range(50):
        admission.admit(inputs=1, tokens=20, remaining_s=math.inf)
    with pytest.raises(OverloadedError):
        admission.admit(inputs=1, tokens=20, remaining_s=0.01)
    assert label_of(admission, 20) == ""


def test_drain_rate_is_a_moving_average() -> None:
    """A batch counts for a tenth of what is known of the rate; long ones for more."""
    admission = Admission(
        max_inputs=1, max_tokens=1, batch_tokens=512, max_queue_s=10, clock=Clock()
    )
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
    """Retry delays are neither zero nor an hour."""
    admission = admission_of(max_inputs=1, max_tokens=1)
    admission.drain_rate.add(rate, seconds)
    admission.admit(inputs=1, tokens=tokens, remaining_s=math.inf)
    with pytest.raises(OverloadedError) as refused:
        admission.admit(inputs=1, tokens=1, remaining_s=math.inf)
    assert refused.value.retry_delay_s is not None
    assert 0.08 <= refused.value.retry_delay_s <= 36


def test_retry_delays_are_spread() -> None:
    """Callers that are refused together do not all retry together."""
    admission = admission_of(max_inputs=1, max_tokens=1)
    assert len({admission.retry_delay_s() for _ in range(20)}) > 10


@given(
    characters=st.integers(0, 10**6), inputs=st.integers(1, 1000), max_tokens=st.integers(1, 8192)
)
def test_estimate_is_bounded(characters: int, inputs: int, max_tokens: int) -> None:
    """No estimate exceeds what the model can read."""
    guess = estimate_tokens(characters, inputs, max_tokens)
    assert 0 < guess <= inputs * max_tokens


@pytest.mark.parametrize(
    ("characters", "inputs", "tokens"), [(400, 1, 102), (3, 1, 2), (4000, 10, 1020), (9999, 1, 512)]
)
def test_estimate_is_that_of_english(characters: int, inputs: int, tokens: int) -> None:
    """Four characters make a token, and each text has two special ones."""
    assert estimate_tokens(characters, inputs, 512) == tokens
