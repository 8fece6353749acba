"""Decides which batch runs next, from what is queued and running. Pure: no threads, no clock.

A free lane takes the best batch available at once. While interactive calls arrive, bulk work leaves
one lane free for them, or gives way to them where the backend can do that: then one more batch may
run than there are lanes. Callers pass the time, in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.model_queue import INTERACTIVE_WEIGHT, ModelQueue
from embedgrpc.engine.work import BatchEntry, QueuedSequence
from embedgrpc.engine.work_class import WorkClass


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that run together.

    Attributes:
        work_class: The class of the sequence that it was built around.
        entries: Its sequences; equal ones share an entry.
        gives_way: Whether it leaves the cores to batches that do not, while they need them.
    """

    work_class: WorkClass
    entries: list[BatchEntry]
    gives_way: bool = False


class Dispatcher:
    """The queue and the lanes of one model.

    Args:
        budget: Limits of a batch.
        bulk_batch_s: Maximum duration of a bulk batch while interactive calls arrive, in seconds.
        weights: Shares of callers relative to others.
        lanes: Maximum batches at once.
        lanes_compete: Whether concurrent batches take longer than one after the other.
        bulk_gives_way: Whether bulk batches can leave the cores to interactive ones.

    Attributes:
        queue: The queue.
        bulk_gives_way: As above; may be set later.
    """

    def __init__(
        self,
        budget: BatchBudget,
        weights: Mapping[str, float],
        *,
        bulk_batch_s: float,
        lanes: int,
        lanes_compete: bool,
        bulk_gives_way: bool = False,
    ) -> None:
        self.queue = ModelQueue(budget, weights)
        self._bulk_batch_s = bulk_batch_s
        self._lanes = lanes
        self._lanes_compete = lanes_compete
        self.bulk_gives_way = bulk_gives_way
        # Interactive tokens that began beside bulk batches since the last of those ended.
        self._passed_tokens = 0
        self._running = dict.fromkeys(WorkClass, 0)

    @property
    def batches_max(self) -> int:
        """Maximum batches at once."""
        return self._lanes + self.bulk_gives_way

    @property
    def busy(self) -> int:
        """The number of lanes that run a batch."""
        return self._running[WorkClass.INTERACTIVE] + self._running[WorkClass.BULK]

    def learn(self, work_class: WorkClass, padded_tokens: int, seconds: float) -> None:
        """Adapt the size of bulk batches to how long one of this size took.

        Those that give way hold nobody up, whatever their size.
        """
        if work_class is WorkClass.BULK and not self.bulk_gives_way:
            self.queue.budget = self.queue.budget.after_bulk_batch(
                padded_tokens, seconds, limit_s=self._bulk_batch_s
            )

    def push(self, queued: QueuedSequence, now: float) -> None:
        """Queue a sequence."""
        self.queue.push(queued, now)

    def begin(self, now: float) -> Batch | None:
        """Take a lane and the batch to run on it now; None if there is no lane or no batch."""
        if self.busy >= self.batches_max:
            return None
        entries = self.queue.pop_batch(now, self._may_run(now))
        if not entries:
            return None
        work_class = entries[0][0].job.call.work_class
        if work_class is WorkClass.INTERACTIVE and self._running[WorkClass.BULK]:
            self._passed_tokens += len(entries) * max(entry[0].tokens for entry in entries)
        self._running[work_class] += 1
        is_bulk = work_class is WorkClass.BULK
        gives_way = is_bulk and self.bulk_gives_way and self.queue.is_shared(now)
        return Batch(work_class, entries, gives_way)

    def finish(self, work_class: WorkClass) -> None:
        """Free a lane."""
        self._running[work_class] -= 1
        if work_class is WorkClass.BULK:
            self._passed_tokens = 0

    def can_begin(self, now: float) -> bool:
        """Return whether `begin` would probably return a batch; cheap."""
        if self.busy >= self.batches_max:
            return False
        return any(self.queue.waiting(one) for one in self._may_run(now))

    def drain(self, now: float) -> list[BatchEntry]:
        """Remove and return everything that is queued."""
        entries: list[BatchEntry] = []
        while batch := self.queue.pop_batch(now):
            entries += batch
        return entries

    def _may_run(self, now: float) -> set[WorkClass]:
        """Return the classes of which another batch may run now.

        Where lanes compete, each class has one. Bulk work runs when no call waits or when its
        share is due. While calls are expected, it gives way or leaves a lane free. If too many
        have passed a bulk batch that gives way, it has the cores until one has ended.
        """
        classes = set()
        lanes = 1 if self._lanes_compete else self._lanes
        limit = INTERACTIVE_WEIGHT * self.queue.budget.tokens
        is_overdue = self.bulk_gives_way and self._passed_tokens >= limit
        if self._running[WorkClass.INTERACTIVE] < lanes and not is_overdue:
            classes.add(WorkClass.INTERACTIVE)
        leaves_free = not self.bulk_gives_way and self.queue.is_shared(now)
        bulk_lanes = max(lanes - leaves_free, 1)
        may_pass = not self.queue.waiting(WorkClass.INTERACTIVE) or self.queue.is_bulk_due()
        if self._running[WorkClass.BULK] < bulk_lanes and may_pass:
            classes.add(WorkClass.BULK)
        return classes
