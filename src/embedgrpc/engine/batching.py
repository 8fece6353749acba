"""Which sequences ride together: a choice made from what waits, and from nothing else.

A batch costs what its padded form costs: sequences times the longest of them. So it is
built around the most urgent sequence, from those whose length is nearest to it.
"""

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from embedgrpc.engine.work import QueuedSequence, WorkClass

# How many budgets of interactive tokens are run before bulk work that waits gets one.
_INTERACTIVE_WEIGHT = 4
# A queue holds this many sequences that are gone, and as many again as wait, before it is
# gone through to let go of them.
_STALE_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """What a batch may cost.

    Attributes:
        tokens: The most padded tokens. A single sequence that is longer rides alone.
        sequences: The most sequences.
        overhead_tokens: What a batch of its own costs, in padded tokens: a sequence joins
            only where the padding that it adds is no more than that.
    """

    tokens: int
    sequences: int
    overhead_tokens: int


def choose_lengths(
    lengths: Sequence[int], counts: Mapping[int, int], *, anchor: int, budget: BatchBudget
) -> dict[int, int]:
    """Chooses how many sequences of each length ride with the anchor.

    Args:
        lengths: The lengths that wait, ascending, each once.
        counts: How many sequences of each length wait, at least 1.
        anchor: The length of the sequence that must ride; one of `lengths`.
        budget: The limits.

    Returns:
        How many to take of each length, the anchor among them. Their number times the
        longest is within the budget unless the anchor alone exceeds it.
    """
    chosen: dict[int, int] = {}
    size = 0
    longest = anchor

    def take(length: int) -> None:
        nonlocal size, longest
        longest = max(longest, length)
        room = max(min(budget.tokens // longest, budget.sequences), 1) - size
        chosen[length] = min(counts[length], room)
        size += chosen[length]

    take(anchor)
    shorter = bisect_left(lengths, anchor) - 1
    longer = shorter + 2
    while True:
        down = longest - lengths[shorter] if shorter >= 0 else None
        up = _padding_added(lengths, counts, longer, size=size, longest=longest, budget=budget)
        if size >= min(budget.tokens // longest, budget.sequences):
            down = None
        if down is not None and down <= budget.overhead_tokens and (up is None or down <= up):
            take(lengths[shorter])
            shorter -= 1
        elif up is not None and up <= budget.overhead_tokens:
            take(lengths[longer])
            longer += 1
        else:
            return chosen


def _padding_added(
    lengths: Sequence[int],
    counts: Mapping[int, int],
    position: int,
    *,
    size: int,
    longest: int,
    budget: BatchBudget,
) -> float | None:
    """Tells how much padding each newcomer of a greater length brings to those that ride."""
    if position >= len(lengths):
        return None
    length = lengths[position]
    room = min(budget.tokens // length, budget.sequences) - size
    if room <= 0:
        return None
    return size * (length - longest) / min(counts[length], room)


class ClassQueue:
    """The sequences of one class that wait, by urgency and by length."""

    def __init__(self) -> None:
        # A heap, by urgency; of equals, the first that came is the first that goes.
        self._by_urgency: list[tuple[float, int, QueuedSequence]] = []
        self._by_length: dict[int, deque[QueuedSequence]] = {}
        self._counts: dict[int, int] = {}
        self._lengths: list[int] = []
        self._arrivals = count()
        # What stands in `_by_length`, sequences that are gone included.
        self._held = 0
        self.size = 0

    def push(self, queued: QueuedSequence) -> None:
        """Adds a sequence."""
        length = queued.tokens
        heapq.heappush(self._by_urgency, (queued.urgency, next(self._arrivals), queued))
        if length not in self._counts:
            insort(self._lengths, length)
            self._by_length[length] = deque()
            self._counts[length] = 0
        self._by_length[length].append(queued)
        self._counts[length] += 1
        self._held += 1
        self.size += 1

    def most_urgent(self) -> QueuedSequence | None:
        """Returns the sequence that should run first, or None when none waits."""
        while self._by_urgency and self._by_urgency[0][-1].gone:
            heapq.heappop(self._by_urgency)
        return self._by_urgency[0][-1] if self._by_urgency else None

    def remove(self, queued: QueuedSequence) -> None:
        """Takes a sequence out, wherever it stands."""
        queued.gone = True
        length = queued.tokens
        self.size -= 1
        self._counts[length] -= 1
        if not self._counts[length]:
            self._held -= len(self._by_length.pop(length))
            del self._counts[length], self._lengths[bisect_left(self._lengths, length)]
        if max(len(self._by_urgency), self._held) > 2 * self.size + _STALE_ENTRIES:
            self._forget_gone()

    def _forget_gone(self) -> None:
        """Lets go of the sequences that are gone, wherever they still stand."""
        self._by_urgency = [entry for entry in self._by_urgency if not entry[-1].gone]
        heapq.heapify(self._by_urgency)
        for length, waiting in self._by_length.items():
            self._by_length[length] = deque(queued for queued in waiting if not queued.gone)
        self._held = self.size

    def pop_batch(self, budget: BatchBudget) -> list[QueuedSequence]:
        """Takes out the best batch there is; empty when nothing waits."""
        anchor = self.most_urgent()
        if anchor is None:
            return []
        chosen = choose_lengths(self._lengths, self._counts, anchor=anchor.tokens, budget=budget)
        self.remove(anchor)
        batch = [anchor]
        for length, riders in chosen.items():
            wanted = riders - (length == anchor.tokens)
            while wanted:
                queued = self._by_length[length].popleft()
                self._held -= 1
                if not queued.gone:
                    self.remove(queued)
                    batch.append(queued)
                    wanted -= 1
        return batch


class BatchQueue:
    """All that waits for one model, and whose turn it is.

    Interactive work goes first. Bulk work that waits gets a batch after every few budgets of
    interactive tokens, so that it cannot starve.
    """

    def __init__(self, budget: BatchBudget) -> None:
        self._budget = budget
        self._queues = {work_class: ClassQueue() for work_class in WorkClass}
        self._tokens_since_bulk = 0

    def __len__(self) -> int:
        return sum(queue.size for queue in self._queues.values())

    def push(self, queued: QueuedSequence) -> None:
        """Adds a sequence."""
        self._queues[queued.job.call.work_class].push(queued)

    def remove(self, queued: QueuedSequence) -> None:
        """Takes a sequence out that nobody waits for any more."""
        if not queued.gone:
            self._queues[queued.job.call.work_class].remove(queued)

    def pop_batch(self) -> list[QueuedSequence]:
        """Takes out the next batch; empty when nothing waits."""
        interactive = self._queues[WorkClass.INTERACTIVE]
        bulk = self._queues[WorkClass.BULK]
        if not bulk.size:
            self._tokens_since_bulk = 0
        weight_used_up = self._tokens_since_bulk >= _INTERACTIVE_WEIGHT * self._budget.tokens
        if bulk.size and (not interactive.size or weight_used_up):
            self._tokens_since_bulk = 0
            return bulk.pop_batch(self._budget)
        batch = interactive.pop_batch(self._budget)
        if batch:
            self._tokens_since_bulk += len(batch) * max(queued.tokens for queued in batch)
        return batch
