"""A server in virtual time: calls are admitted, queue up, run on lanes and end.

It replaces the server's pipeline, scheduler and delivery around a policy. Tokenizing, the network
and scheduling itself take no time.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.simulated_machine import Lanes, Machine
from benchmarks.simulated_policies import Policy
from benchmarks.simulated_record import Ending, Record
from benchmarks.simulated_time import VirtualTime
from benchmarks.traces import Arrival, Stream, Trace
from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.scheduling.dispatch import Batch
from embedgrpc.engine.work import Call, Job, QueuedSequence
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.tokenizers.token_sequence import TokenSequence


class _Visit:
    """A call that has not ended, and the sink of its job, which keeps no results."""

    def __init__(self, arrival: Arrival, call: Call, answered: Callable[[], None] | None) -> None:
        self.arrival = arrival
        self.call = call
        self.answered = answered
        self.job: Job | None = None
        self.left = len(arrival.lengths)
        self.ended = False

    def succeeded(self, indices: object, rows: OutputRows) -> None:
        """Keep nothing; see `Sink`."""

    def failed(self, indices: object, error: EngineError) -> None:
        """Keep nothing; see `Sink`."""


class SimulatedServer:
    """Serves a trace.

    Args:
        clock: The clock.
        machine: The machine that runs batches.
        policy: The policy that admits calls and forms batches.
        record: Counts calls and batches.
    """

    def __init__(
        self, clock: VirtualTime, machine: Machine, policy: Policy, record: Record
    ) -> None:
        self._clock = clock
        self._policy = policy
        self._record = record
        self._lanes = Lanes(clock, machine, self._done)
        self._visits: dict[Job, _Visit] = {}
        # The bulk calls that wait for room.
        self._line: list[_Visit] = []
        self._texts = itertools.count()
        self._woken_at_s = -math.inf
        policy.door.admission.ledger.on_room = self._let_in

    @property
    def inside(self) -> int:
        """The number of calls that have not ended."""
        return len(self._visits) + len(self._line)

    def take(self, trace: Trace) -> None:
        """Schedule the whole load."""
        self._take_next(iter(trace.arrivals))
        for stream in trace.streams:
            self._open(stream, trace.seconds)

    def _take_next(self, arrivals: Iterator[Arrival]) -> None:
        arrival = next(arrivals, None)
        if arrival is not None:

            def come() -> None:
                self._arrive(arrival)
                self._take_next(arrivals)

            self._clock.at(arrival.at_s, come)

    def _open(self, stream: Stream, seconds: float) -> None:
        messages = itertools.cycle(stream.messages)

        def send() -> None:
            if self._clock.now_s < seconds:
                lengths = next(messages)
                arrival = Arrival(self._clock.now_s, lengths, stream.caller, WorkClass.BULK)
                self._arrive(arrival, send)

        for _ in range(stream.window):
            self._clock.at(0, send)

    def _arrive(self, arrival: Arrival, answered: Callable[[], None] | None = None) -> None:
        call = Call(arrival.work_class, arrival.at_s + arrival.deadline_s, arrival.caller)
        visit = _Visit(arrival, call, answered)
        self._record.arrived()
        if math.isfinite(call.deadline):
            self._clock.at(call.deadline, lambda: self._expire(visit))
        if self._enter(visit):
            self._fill()
        elif call.work_class is WorkClass.BULK:
            self._line.append(visit)
        else:
            self._end(visit, Ending.REFUSED)

    def _enter(self, visit: _Visit) -> bool:
        reservation = self._policy.door.admit(visit.call, visit.arrival.lengths)
        if reservation is None:
            return False
        job = self._job(visit, reservation)
        visit.job = job
        self._visits[job] = visit
        self._policy.push(job, self._clock.now_s)
        return True

    def _job(self, visit: _Visit, reservation: Reservation) -> Job:
        lengths = visit.arrival.lengths
        job = Job(
            call=visit.call,
            outputs=("",),
            sink=visit,
            inputs=len(lengths),
            reservation=reservation,
        )
        for index, length in enumerate(lengths):
            # No two texts are equal: the server runs equal ones once.
            ids = np.zeros(length, np.int64)
            ids[0] = next(self._texts)
            job.sequences[index] = TokenSequence(ids, None, length)
        return job

    def _let_in(self) -> None:
        """Admit bulk calls that wait; those of callers with the fewest tokens inside come first."""
        held = self._policy.door.admission.ledger.held_tokens
        while self._line:
            first = min(self._line, key=lambda one: held(one.call.work_class, one.call.caller))
            if not self._enter(first):
                break
            self._line.remove(first)

    def _fill(self) -> None:
        """Start a batch on every free lane, as long as the policy has one."""
        now = self._clock.now_s
        while not self._lanes.are_busy:
            batch = self._policy.begin(now)
            if batch is None:
                wake_at_s = self._policy.wake_at()
                if self._woken_at_s != wake_at_s < math.inf:
                    self._woken_at_s = wake_at_s
                    self._clock.at(wake_at_s, self._fill)
                return
            wanted = [entry for entry in batch.entries if any(one.is_wanted(now) for one in entry)]
            if wanted:
                self._lanes.start(Batch(batch.work_class, wanted))
            else:
                self._policy.finish(batch.work_class)

    def _done(self, batch: Batch, elapsed_s: float) -> None:
        self._policy.finish(batch.work_class)
        # The lane does not wait for the delivery of results.
        self._fill()
        self._policy.learn(batch, elapsed_s)
        self._record.ran(batch, self._clock.now_s)
        riders: dict[Job, list[QueuedSequence]] = {}
        for entry in batch.entries:
            for one in entry:
                riders.setdefault(one.job, []).append(one)
        for job, ones in riders.items():
            tokens = sum(one.tokens for one in ones)
            self._policy.door.release(job.reservation, len(ones), tokens, SequenceOutcome.ANSWERED)
            visit = self._visits.get(job)
            if visit is not None:
                visit.left -= len(ones)
                if not visit.left:
                    self._end(visit, Ending.ANSWERED)
        self._fill()

    def _expire(self, visit: _Visit) -> None:
        """End a call whose deadline has passed, like the pipeline."""
        if visit.ended:
            return
        if visit.job is None:
            self._line.remove(visit)
        else:
            visit.job.cancelled = True
            self._policy.remove(visit.job)
            visit.job.reservation.release_all()
        self._end(visit, Ending.EXPIRED)
        self._fill()

    def _end(self, visit: _Visit, ending: Ending) -> None:
        visit.ended = True
        if visit.job is not None:
            del self._visits[visit.job]
            # A reference cycle, which only the garbage collector would free.
            visit.job = None
        self._record.ended(visit.arrival, self._clock.now_s, ending)
        if visit.answered is not None and ending is Ending.ANSWERED:
            self._clock.at(self._clock.now_s, visit.answered)
