"""The queue of one model: decides which work class the next batch is of.

Interactive work goes before bulk work, which still gets its share. Equal sequences leave the queue
together, whatever their class and caller.
"""

from collections.abc import Collection, Mapping

from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.work_class_queue import WorkClassQueue
from embedgrpc.engine.work import BatchEntry, QueuedSequence, SequenceKey
from embedgrpc.engine.work_class import WorkClass

# Bulk work gets a batch after this many times a bulk batch's tokens of interactive work.
INTERACTIVE_WEIGHT = 4
# How long after the last interactive sequence bulk work leaves room for the next.
_SHARED_S = 1.0
_ALL = frozenset(WorkClass)


class ModelQueue:
    """All queued sequences of one model.

    Interactive work goes first. Bulk work gets a batch after every few budgets of interactive
    tokens, so that it cannot starve. Callers pass the time, in seconds.

    Args:
        budget: Limits of a batch; may be set later.
        weights: Shares of callers relative to others.
    """

    def __init__(self, budget: BatchBudget, weights: Mapping[str, float] | None = None) -> None:
        self.budget = budget
        self._queues = {work_class: WorkClassQueue(weights or {}) for work_class in WorkClass}
        self._interactive = self._queues[WorkClass.INTERACTIVE]
        self._bulk = self._queues[WorkClass.BULK]
        # By content, in order of arrival.
        self._equal: dict[SequenceKey, dict[QueuedSequence, None]] = {}
        self._tokens_since_bulk = 0
        self._interactive_at = -_SHARED_S

    def __len__(self) -> int:
        return self._interactive.size + self._bulk.size

    def waiting(self, work_class: WorkClass) -> int:
        """Return how many sequences of a class are queued."""
        return self._queues[work_class].size

    def push(self, queued: QueuedSequence, now: float) -> None:
        """Queue a sequence."""
        work_class = queued.job.call.work_class
        if work_class is WorkClass.INTERACTIVE:
            self._interactive_at = now
        self._queues[work_class].push(queued)
        self._equal.setdefault(queued.key, {})[queued] = None

    def remove(self, queued: QueuedSequence) -> None:
        """Remove a cancelled sequence, unless it has left the queue."""
        if queued.gone:
            return
        self._queues[queued.job.call.work_class].remove(queued)
        equal = self._equal[queued.key]
        del equal[queued]
        if not equal:
            del self._equal[queued.key]

    def is_shared(self, now: float) -> bool:
        """Return whether interactive sequences came recently, so that more are expected."""
        return now - self._interactive_at < _SHARED_S

    def is_bulk_due(self) -> bool:
        """Return whether bulk work has waited for its share of the batches."""
        bulk_tokens = self.budget.when_shared().tokens
        return self._tokens_since_bulk >= INTERACTIVE_WEIGHT * bulk_tokens

    def pop_batch(self, now: float, classes: Collection[WorkClass] = _ALL) -> list[BatchEntry]:
        """Remove and return the next batch.

        Args:
            now: The time.
            classes: The classes it may be of.

        Returns:
            Its entries; empty when nothing is queued that may run.
        """
        interactive, bulk = self._interactive, self._bulk
        if not bulk.size:
            self._tokens_since_bulk = 0
        may_be_interactive = interactive.size and WorkClass.INTERACTIVE in classes
        may_be_bulk = bulk.size and WorkClass.BULK in classes
        if may_be_bulk and (not may_be_interactive or self.is_bulk_due()):
            budget = self.budget.when_shared() if self.is_shared(now) else self.budget
            batch, padded_tokens = bulk.pop_batch(budget, self._pop_equal, now)
            due = self._tokens_since_bulk - INTERACTIVE_WEIGHT * padded_tokens
            self._tokens_since_bulk = max(due, 0)
            return batch
        if not may_be_interactive:
            return []
        batch, padded_tokens = interactive.pop_batch(self.budget, self._pop_equal, now)
        self._tokens_since_bulk += padded_tokens
        return batch

    def _pop_equal(self, queued: QueuedSequence) -> BatchEntry:
        """Remove a sequence and all that equal it; the given one comes first."""
        equal = list(self._equal.pop(queued.key))
        for one in equal:
            self._queues[one.job.call.work_class].remove(one)
        if len(equal) == 1:
            return equal
        return [queued, *(one for one in equal if one is not queued)]
