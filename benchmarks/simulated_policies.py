"""Policies that form batches: the server's, and those of common servers."""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from benchmarks.simulated_doors import Door, OwnDoor
from benchmarks.simulated_machine import Machine
from embedgrpc.engine.scheduling.batching import BatchBudget, BatchSize
from embedgrpc.engine.scheduling.dispatch import Batch, Dispatcher
from embedgrpc.engine.work import BatchEntry, Job, QueuedSequence, due_times
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.settings.settings import Settings

_COUNT = 32
_DELAY_S = 0.005


class Policy(ABC):
    """Decides which calls are admitted, and which batch runs next.

    Args:
        machine: The machine that runs batches.
        settings: The settings of the server.
        clock: Returns the time, in seconds.

    Attributes:
        door: The admission of calls.
    """

    door: Door

    def __init__(self, machine: Machine, settings: Settings, clock: Callable[[], float]) -> None:
        self.door = Door(settings, batch_tokens=machine.budget.tokens, clock=clock)

    @abstractmethod
    def push(self, job: Job, now: float) -> None:
        """Queue the sequences of a job."""

    @abstractmethod
    def begin(self, now: float) -> Batch | None:
        """Return the batch for a free lane to run now; None to wait."""

    def finish(self, work_class: WorkClass) -> None:
        """Record that a lane is free again, after a batch of this class."""
        del work_class

    def learn(self, batch: Batch, elapsed_s: float) -> None:
        """Record the tokens of a batch, and the busy time since the last one."""
        del batch, elapsed_s

    def remove(self, job: Job) -> None:
        """Remove a job whose caller is gone."""
        del job

    def wake_at(self) -> float:
        """Return the time to ask for a batch again, if nothing happens before."""
        return math.inf


class Own(Policy):
    """The policy of the server."""

    def __init__(self, machine: Machine, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(machine, settings, clock)
        self.door = OwnDoor(settings, batch_tokens=machine.budget.tokens, clock=clock)
        self._overhead_tokens = machine.budget.overhead_tokens
        self._cost = machine.cost
        self._dispatcher = Dispatcher(
            machine.budget,
            settings.caller_weights,
            bulk_batch_s=settings.bulk_batch_ms / 1000,
            lanes=machine.lanes,
            # As on the CPU, where lanes share the cores without waiting for each other.
            lanes_compete=False,
        )

    def push(self, job: Job, now: float) -> None:
        """Queue each sequence by its due time."""
        lengths = [len(one.input_ids) for one in job.sequences if one is not None]
        token_s = self.door.admission.seconds(1)
        job.queued = _entries(job, due_times(job.call, lengths, now=now, token_s=token_s))
        for one in job.queued:
            self._dispatcher.push(one, now)

    def begin(self, now: float) -> Batch | None:
        """Return the best batch."""
        return self._dispatcher.begin(now)

    def finish(self, work_class: WorkClass) -> None:
        """Return the lane."""
        self._dispatcher.finish(work_class)

    def learn(self, batch: Batch, elapsed_s: float) -> None:
        """Update the measured speed."""
        lengths = [entry[0].tokens for entry in batch.entries]
        self.door.admission.drain_rate.add(sum(lengths) + self._overhead_tokens, elapsed_s)
        padded_tokens = len(lengths) * max(lengths)
        self._dispatcher.learn(batch.work_class, padded_tokens, self._cost.seconds(padded_tokens))

    def remove(self, job: Job) -> None:
        """Remove its sequences from the queue."""
        for one in job.queued:
            self._dispatcher.queue.remove(one)


class Fifo(Policy):
    """First come, first served, up to a budget of padded tokens."""

    def __init__(self, machine: Machine, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(machine, settings, clock)
        self.budget: BatchBudget = machine.budget
        self.waiting: deque[QueuedSequence] = deque()

    def push(self, job: Job, now: float) -> None:
        """Append a job to the queue."""
        job.queued = _entries(job, [now] * len(job.sequences))
        self.waiting += job.queued

    def begin(self, now: float) -> Batch | None:
        """Return the first sequences that fit into the budget."""
        del now
        filled = BatchSize(self.budget)
        entries: list[BatchEntry] = []
        while self.waiting and (
            not entries or filled.room(self.waiting[0].tokens) > 0 or self.waiting[0].job.cancelled
        ):
            one = self.waiting.popleft()
            if not one.job.cancelled:
                filled.add(one.tokens)
                entries.append([one])
        return Batch(entries[0][0].job.call.work_class, entries) if entries else None


class Counted(Fifo):
    """First come, first served, a fixed number of texts, whatever their lengths."""

    def __init__(self, machine: Machine, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(machine, settings, clock)
        # Without a limit of tokens.
        self.budget = BatchBudget(tokens=2**60, sequences=_COUNT, overhead_tokens=0)


class CountedOrLate(Counted):
    """Waits for a fixed number of texts, or until the first has waited for 5 ms."""

    def begin(self, now: float) -> Batch | None:
        """Return a batch if there are enough texts, or if the first has waited long enough."""
        return super().begin(now) if now >= self.wake_at() else None

    def wake_at(self) -> float:
        """Return the time at which the first text has waited long enough."""
        if not self.waiting:
            return math.inf
        if len(self.waiting) >= _COUNT:
            return -math.inf
        # The urgency is the time of arrival, see `push`.
        return self.waiting[0].urgency + _DELAY_S


POLICIES: Mapping[str, type[Policy]] = {
    "own": Own,
    "fifo": Fifo,
    "count": Counted,
    "timer": CountedOrLate,
}


def _entries(job: Job, urgencies: Sequence[float]) -> list[QueuedSequence]:
    sequences = [(index, one) for index, one in enumerate(job.sequences) if one is not None]
    return [
        QueuedSequence(job, index, one, urgency)
        for (index, one), urgency in zip(sequences, urgencies, strict=True)
    ]
