"""Which sequences ride together: a choice made from what waits, and from nothing else.

A batch costs what its padded form costs, sequences times the longest of them, and something for
being a batch. So it is built around the most urgent sequence, from those whose length is near.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from embedgrpc.engine.work import QueuedSequence, WorkClass

# How many budgets of interactive tokens are run before bulk work that waits gets one.
_INTERACTIVE_WEIGHT = 4
# How many lengths on either side of the anchor's are looked at: the choice is quadratic in it.
_NEIGHBOURS = 12
# A queue holds this many sequences that are gone, and as many again as wait, before it is
# gone through to let go of them.
_STALE_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """What a batch may cost.

    Attributes:
        tokens: The most padded tokens. A single sequence that is longer rides alone.
        sequences: The most sequences.
        overhead_tokens: What a batch costs beyond its padded tokens, in padded tokens.
    """

    tokens: int
    sequences: int
    overhead_tokens: int

    def room(self, longest: int) -> int:
        """Tells how many sequences fit when this is the longest; at least 1."""
        return max(min(self.tokens // longest, self.sequences), 1)


def choose_lengths(
    lengths: Sequence[int], counts: Mapping[int, int], *, anchor: int, budget: BatchBudget
) -> dict[int, int]:
    """Chooses how many sequences of each length ride with the anchor.

    What waits near the anchor is divided into groups of neighbouring lengths so that running
    them all costs the least: padding against batches. The batch comes out of the anchor's group.

    Args:
        lengths: The lengths that wait, ascending, each once.
        counts: How many sequences of each length wait, at least 1.
        anchor: The length of the sequence that must ride; one of `lengths`.
        budget: The limits.

    Returns:
        How many to take of each length, the anchor among them. Their number times the
        longest is within the budget unless the anchor alone exceeds it.
    """
    position = bisect_left(lengths, anchor)
    near = lengths[max(position - _NEIGHBOURS, 0) : position + _NEIGHBOURS + 1]
    group = _cheapest_group(near, [counts[length] for length in near], anchor, budget)
    by_distance = sorted(group, key=lambda length: (abs(length - anchor), -length))
    chosen: dict[int, int] = {}
    size = 0
    longest = anchor
    for length in by_distance:
        room = budget.room(max(longest, length)) - size
        if room <= 0:
            continue
        longest = max(longest, length)
        chosen[length] = min(counts[length], room)
        size += chosen[length]
    return chosen


def _cheapest_group(
    lengths: Sequence[int], counts: Sequence[int], anchor: int, budget: BatchBudget
) -> Sequence[int]:
    """Divides lengths into groups at the least cost; returns the group that has the anchor."""
    # The least cost of all lengths before this one, and where their last group begins.
    costs = [0.0]
    begins = [0]
    for end, longest in enumerate(lengths, start=1):
        room = budget.room(longest)
        size = 0
        best = math.inf
        begin = 0
        for start in range(end - 1, -1, -1):
            size += counts[start]
            batches = -(-size // room)
            cost = costs[start] + batches * budget.overhead_tokens + size * longest
            if cost < best:
                best, begin = cost, start
        costs.append(best)
        begins.append(begin)
    end = len(lengths)
    while lengths[begins[end]] > anchor:
        end = begins[end]
    return lengths[begins[end] : end]


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
