"""Which batch runs next on which lane: a choice made from what waits and runs, without threads.

A lane that is free takes the best batch there is, at once. While interactive calls come, bulk
work leaves them a lane. Time is told by whoever calls, in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.model_queue import ModelQueue
from embedgrpc.engine.work import BatchEntry, QueuedSequence
from embedgrpc.engine.work_class import WorkClass


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs together.

    Attributes:
        work_class: The class of the sequence that it was built around.
        entries: What rides in it.
    """

    work_class: WorkClass
    entries: list[BatchEntry]


class Dispatcher:
    """What waits and what runs of one model.

    Args:
        budget: What a batch may cost.
        bulk_batch_s: How long a bulk batch may take while interactive calls come, in seconds.
        weights: How much more than others some callers get.
        lanes: How many batches may run at once.
        lanes_compete: Whether batches that run at once take longer than one after the other.
    """

    def __init__(
        self,
        budget: BatchBudget,
        weights: Mapping[str, float],
        *,
        bulk_batch_s: float,
        lanes: int,
        lanes_compete: bool,
    ) -> None:
        self.queue = ModelQueue(budget, weights)
        self._bulk_batch_s = bulk_batch_s
        self._lanes = lanes
        self._lanes_compete = lanes_compete
        self._running = dict.fromkeys(WorkClass, 0)

    @property
    def busy(self) -> int:
        """How many lanes run a batch."""
        return self._running[WorkClass.INTERACTIVE] + self._running[WorkClass.BULK]

    def set_speed(self, token_s: float) -> None:
        """Limit bulk batches by what a token of a batch that runs alone takes, in seconds."""
        self.queue.budget = self.queue.budget.with_shared_time(self._bulk_batch_s, token_s=token_s)

    def push(self, queued: QueuedSequence, now: float) -> None:
        """Adds a sequence."""
        self.queue.push(queued, now)

    def begin(self, now: float) -> Batch | None:
        """Takes a lane and the batch that is to run on it now; None when there is none."""
        if self.busy >= self._lanes:
            return None
        entries = self.queue.pop_batch(now, self._may_run(now))
        if not entries:
            return None
        batch = Batch(entries[0][0].job.call.work_class, entries)
        self._running[batch.work_class] += 1
        return batch

    def finish(self, work_class: WorkClass) -> None:
        """Gives a lane back."""
        self._running[work_class] -= 1

    def can_begin(self, now: float) -> bool:
        """Tells whether `begin` would probably give a batch; costs little."""
        if self.busy >= self._lanes:
            return False
        return any(self.queue.waiting(one) for one in self._may_run(now))

    def drain(self, now: float) -> list[BatchEntry]:
        """Takes out everything that waits."""
        entries: list[BatchEntry] = []
        while batch := self.queue.pop_batch(now):
            entries += batch
        return entries

    def _may_run(self, now: float) -> set[WorkClass]:
        """Names the classes of which another batch may run now.

        Where lanes compete each class has one. Bulk work begins where no call waits, or where it
        has waited for its share; and it leaves a lane free while calls are to be expected.
        """
        classes = set()
        if not (self._lanes_compete and self._running[WorkClass.INTERACTIVE]):
            classes.add(WorkClass.INTERACTIVE)
        bulk_lanes = 1 if self._lanes_compete else max(self._lanes - self.queue.is_shared(now), 1)
        may_pass = not self.queue.waiting(WorkClass.INTERACTIVE) or self.queue.is_bulk_due()
        if self._running[WorkClass.BULK] < bulk_lanes and may_pass:
            classes.add(WorkClass.BULK)
        return classes
