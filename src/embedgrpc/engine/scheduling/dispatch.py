"""Which batch runs next on which lane: a choice made from what waits and runs, without threads.

A lane that is free takes the best batch there is, at once. While interactive calls come, bulk
work leaves them a lane. Time is told by whoever calls, in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from embedgrpc.backends.base import PaddedBatch
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
        padded: The entries laid out; None where that is still to be done.
    """

    work_class: WorkClass
    entries: list[BatchEntry]
    padded: PaddedBatch | None = None


class Dispatcher:
    """What waits and what runs of one model.

    Args:
        budget: What a batch may cost.
        weights: How much more than others some callers get.
        lanes: How many batches may run at once.
        lanes_compete: Whether batches that run at once take longer than one after the other.
    """

    def __init__(
        self,
        budget: BatchBudget,
        weights: Mapping[str, float],
        *,
        lanes: int,
        lanes_compete: bool,
    ) -> None:
        self.queue = ModelQueue(budget, weights)
        self._lanes = lanes
        self._lanes_compete = lanes_compete
        self._running = dict.fromkeys(WorkClass, 0)
        self._ahead: Batch | None = None
        self._making_ahead = False

    @property
    def busy(self) -> int:
        """How many lanes run a batch."""
        return self._running[WorkClass.INTERACTIVE] + self._running[WorkClass.BULK]

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self.busy or len(self.queue) or self._ahead or self._making_ahead)

    def push(self, queued: QueuedSequence, now: float) -> None:
        """Adds a sequence."""
        self.queue.push(queued, now)

    def begin(self, now: float) -> Batch | None:
        """Takes a lane and the batch that is to run on it now; None when there is none."""
        if self.busy >= self._lanes:
            return None
        batch = self._take_ahead(now) or self._take_waiting(now)
        if batch is not None:
            self._running[batch.work_class] += 1
        return batch

    def take_idle_lane(self) -> None:
        """Takes a lane for a batch of nobody's."""
        self._running[WorkClass.BULK] += 1

    def finish(self, work_class: WorkClass) -> None:
        """Gives a lane back."""
        self._running[work_class] -= 1

    def begin_ahead(self, now: float) -> Batch | None:
        """Takes the batch that will come next, so that it can be laid out while others run.

        Returns:
            None when it could run now, when there is such a batch already, or when what waits
            does not fill one: that may still be joined by others.
        """
        if not self.can_begin_ahead(now):
            return None
        self._making_ahead = True
        return _batch_of(self.queue.pop_batch(now))

    def can_begin_ahead(self, now: float) -> bool:
        """Tells whether `begin_ahead` would give a batch."""
        return (
            self._ahead is None
            and not self._making_ahead
            and self.busy > 0
            and self.queue.is_ample()
            and not self.can_begin(now)
        )

    def finish_ahead(self, batch: Batch) -> None:
        """Takes the batch back, laid out."""
        self._ahead, self._making_ahead = batch, False

    def can_begin(self, now: float) -> bool:
        """Tells whether `begin` would probably give a batch; costs little."""
        if self.busy >= self._lanes:
            return False
        return self._ahead is not None or any(self.queue.waiting(one) for one in self._may_run(now))

    def drain(self, now: float) -> list[BatchEntry]:
        """Takes out everything that waits."""
        entries = [] if self._ahead is None else list(self._ahead.entries)
        self._ahead = None
        while batch := self.queue.pop_batch(now):
            entries += batch
        return entries

    def _take_ahead(self, now: float) -> Batch | None:
        """Takes the batch that was laid out ahead, unless a call came meanwhile that goes first."""
        batch = self._ahead
        if batch is None or batch.work_class not in self._may_run(now):
            return None
        self._ahead = None
        return batch

    def _take_waiting(self, now: float) -> Batch | None:
        classes = self._may_run(now)
        if self._ahead is not None:
            # Only calls go before it.
            classes.discard(WorkClass.BULK)
        entries = self.queue.pop_batch(now, classes)
        return _batch_of(entries) if entries else None

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


def _batch_of(entries: list[BatchEntry]) -> Batch:
    return Batch(entries[0][0].job.call.work_class, entries)
