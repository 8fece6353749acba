"""Chooses which sequence lengths share a batch.

A batch costs its padded size, which is sequences times the longest of them, plus an overhead. So it
is built around the most urgent sequence, the anchor, from those of similar length.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# Lengths considered on either side of the anchor's. The choice takes quadratic time in them.
_NEIGHBOURS = 8
# A bulk batch is never so small that its overhead is a larger share of its cost than this.
_OVERHEAD_SHARE_MAX = 0.2


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """Limits and cost of a batch.

    Attributes:
        tokens: Maximum padded tokens. A single longer sequence gets a batch of its own.
        sequences: Maximum sequences.
        overhead_tokens: Cost of a batch beyond its padded tokens, in padded tokens.
        shared_tokens: Maximum padded tokens of a bulk batch while interactive calls arrive; 0
            means `tokens`.
    """

    tokens: int
    sequences: int
    overhead_tokens: int
    shared_tokens: int = 0

    def room(self, longest: int) -> int:
        """Return how many sequences fit when this is the longest; at least 1."""
        return max(min(self.tokens // longest, self.sequences), 1)

    def when_shared(self) -> "BatchBudget":
        """Return the budget of a bulk batch while interactive calls arrive."""
        if not self.shared_tokens or self.shared_tokens >= self.tokens:
            return self
        return replace(self, tokens=self.shared_tokens)

    def after_bulk_batch(
        self, padded_tokens: int, seconds: float, *, limit_s: float
    ) -> "BatchBudget":
        """Return the same budget with `shared_tokens` adapted to a bulk batch that ran.

        One that took too long shrinks it in proportion. One that was quick and not small lets it
        grow to twice its size at most. So it follows the speed without a model of the cost.

        Args:
            padded_tokens: The batch's padded tokens.
            seconds: How long it took.
            limit_s: How long a bulk batch may take while interactive calls arrive.
        """
        shared = self.when_shared().tokens
        if seconds > limit_s:
            shared = min(shared, int(padded_tokens * limit_s / seconds))
        elif 2 * padded_tokens >= shared:
            shared = 2 * shared if 2 * seconds <= limit_s else int(shared * limit_s / seconds)
        least = max(int(self.overhead_tokens / _OVERHEAD_SHARE_MAX), 1)
        return replace(self, shared_tokens=min(max(shared, least), self.tokens))


def choose_group(
    lengths: Sequence[int], counts: Mapping[int, int], *, anchor: int, budget: BatchBudget
) -> Sequence[int]:
    """Choose the lengths that may share a batch with the anchor.

    The lengths near the anchor are divided into groups of neighbours so that running all of them
    costs least, trading padding against the overhead of batches. The result is the anchor's group.

    Args:
        lengths: The queued lengths, ascending, each once.
        counts: Number of queued sequences of each length, at least 1.
        anchor: The anchor's length; one of `lengths`.
        budget: The limits.

    Returns:
        The anchor's group, ascending.
    """
    position = bisect_left(lengths, anchor)
    near = lengths[max(position - _NEIGHBOURS, 0) : position + _NEIGHBOURS + 1]
    # The least cost of all lengths before each one, and where their last group begins.
    costs = [0.0]
    begins = [0]
    sizes = [counts[length] for length in near]
    overhead = budget.overhead_tokens
    for end, longest in enumerate(near, start=1):
        room = budget.room(longest)
        size = padding = begin = 0
        best = math.inf
        for start in range(end - 1, -1, -1):
            size += sizes[start]
            padding += sizes[start] * (longest - near[start])
            if padding > (end - 1) * overhead:
                # More than the overhead of all batches that merging these lengths could save.
                break
            cost = costs[start] + -(-size // room) * overhead + size * longest
            if cost < best:
                best, begin = cost, start
        costs.append(best)
        begins.append(begin)
    end = len(near)
    while near[begins[end]] > anchor:
        end = begins[end]
    return near[begins[end] : end]


class BatchSize:
    """The size of a batch while it is filled."""

    def __init__(self, budget: BatchBudget) -> None:
        self._budget = budget
        self.sequences = 0
        self.longest = 1

    @property
    def padded_tokens(self) -> int:
        """Sequences times the longest."""
        return self.sequences * self.longest

    def room(self, length: int) -> int:
        """Return how many more sequences of this length fit."""
        return self._budget.room(max(self.longest, length)) - self.sequences

    def add(self, length: int) -> None:
        """Add a sequence of this length."""
        self.sequences += 1
        self.longest = max(self.longest, length)
