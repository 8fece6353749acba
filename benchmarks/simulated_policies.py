"""Ways to make batches of what waits: the server's own, and those of common servers."""

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
    """Decides what is let in, and what runs when.

    Args:
        machine: What runs it.
        settings: The server's, for its limits.
        clock: Tells the time, in seconds.

    Attributes:
        door: Lets work in.
    """

    door: Door

    def __init__(self, machine: Machine, settings: Settings, clock: Callable[[], float]) -> None:
        self.door = Door(settings, batch_tokens=machine.budget.tokens, clock=clock)

    @abstractmethod
    def push(self, job: Job, now: float) -> None:
        """Queues the sequences of a job."""

    @abstractmethod
    def begin(self, now: float) -> Batch | None:
        """Takes out what a lane that is free is to run now; None if it is to wait."""

    def finish(self, work_class: WorkClass) -> None:
        """Is told that a lane is free again that ran a batch of this class."""
        del work_class

    def learn(self, tokens: int, elapsed_s: float) -> None:
        """Is told of tokens that were run, and how long lanes were busy since the last were."""
        del tokens, elapsed_s

    def remove(self, job: Job) -> None:
        """Takes a job out that nobody waits for any more; it is passed over at the latest."""
        del job

    def wake_at(self) -> float:
        """Tells when a lane that is free is to ask again, though nothing has happened."""
        return math.inf


class Own(Policy):
    """What the server does."""

    def __init__(self, machine: Machine, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(machine, settings, clock)
        self.door = OwnDoor(settings, batch_tokens=machine.budget.tokens, clock=clock)
        self._overhead_tokens = machine.budget.overhead_tokens
        self._parallelism = min(machine.processors, machine.lanes)
        self._dispatcher = Dispatcher(
            machine.budget,
            settings.caller_weights,
            bulk_batch_s=settings.bulk_batch_ms / 1000,
            lanes=machine.lanes,
            # As on the CPU, where they share the cores and do not wait for each other.
            lanes_compete=False,
        )

    def push(self, job: Job, now: float) -> None:
        """Queues each sequence by when it is due."""
        lengths = [len(one.input_ids) for one in job.sequences if one is not None]
        token_s = self.door.admission.seconds(1)
        job.queued = _entries(job, due_times(job.call, lengths, now=now, token_s=token_s))
        for one in job.queued:
            self._dispatcher.push(one, now)

    def begin(self, now: float) -> Batch | None:
        """Takes the best batch there is."""
        return self._dispatcher.begin(now)

    def finish(self, work_class: WorkClass) -> None:
        """Gives the lane back."""
        self._dispatcher.finish(work_class)

    def learn(self, tokens: int, elapsed_s: float) -> None:
        """Learns how fast work is done."""
        drain_rate = self.door.admission.drain_rate
        drain_rate.add(tokens + self._overhead_tokens, elapsed_s)
        self._dispatcher.set_speed(self._parallelism * drain_rate.token_s)

    def remove(self, job: Job) -> None:
        """Takes its sequences out."""
        for one in job.queued:
            self._dispatcher.queue.remove(one)


class Fifo(Policy):
    """Takes what came first, padded to the longest, up to a budget of padded tokens."""

    def __init__(self, machine: Machine, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(machine, settings, clock)
        self.budget: BatchBudget = machine.budget
        self.waiting: deque[QueuedSequence] = deque()

    def push(self, job: Job, now: float) -> None:
        """Puts a job behind those that came before it."""
        job.queued = _entries(job, [now] * len(job.sequences))
        self.waiting += job.queued

    def begin(self, now: float) -> Batch | None:
        """Takes sequences in order, until the next one would be too much."""
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
    """Takes so many texts as they came, whatever their lengths."""

    def __init__(self, machine: Machine, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(machine, settings, clock)
        # Never full by its tokens.
        self.budget = BatchBudget(tokens=2**60, sequences=_COUNT, overhead_tokens=0)


class CountedOrLate(Counted):
    """Waits for so many texts, or until the first has waited for some milliseconds."""

    def begin(self, now: float) -> Batch | None:
        """Takes texts if there are enough, or if one waits for too long."""
        return super().begin(now) if now >= self.wake_at() else None

    def wake_at(self) -> float:
        """Tells when the first has waited for long enough."""
        if not self.waiting:
            return math.inf
        if len(self.waiting) >= _COUNT:
            return -math.inf
        # The urgency of what is served in order is when it came.
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
