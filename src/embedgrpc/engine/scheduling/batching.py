"""Which lengths ride together: a choice made from what waits, and from nothing else.

A batch costs what its padded form costs, sequences times the longest of them, and something for
being a batch. So it is built around the most urgent sequence, from those whose length is near.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# How many lengths on either side of the anchor's are looked at: the choice is quadratic in it.
_NEIGHBOURS = 8


# A bulk batch is never so small that being a batch is more of its cost than this.
_OVERHEAD_SHARE_MAX = 0.2


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """What a batch may cost.

    Attributes:
        tokens: The most padded tokens. A single sequence that is longer rides alone.
        sequences: The most sequences.
        overhead_tokens: What a batch costs beyond its padded tokens, in padded tokens.
        shared_tokens: The most padded tokens of a bulk batch while interactive calls come, too;
            0 for `tokens`.
    """

    tokens: int
    sequences: int
    overhead_tokens: int
    shared_tokens: int = 0

    def room(self, longest: int) -> int:
        """Tells how many sequences fit when this is the longest; at least 1."""
        return max(min(self.tokens // longest, self.sequences), 1)

    def when_shared(self) -> "BatchBudget":
        """Returns what a bulk batch may cost while interactive calls come, too."""
        if not self.shared_tokens or self.shared_tokens >= self.tokens:
            return self
        return replace(self, tokens=self.shared_tokens)

    def with_shared_time(self, seconds: float, *, token_s: float) -> "BatchBudget":
        """Return the same budget with `shared_tokens` for batches that take so long.

        Args:
            seconds: How long a bulk batch may take while interactive calls come, too.
            token_s: Seconds that a token takes, overhead of batches included.
        """
        if (self.tokens + self.overhead_tokens) * token_s <= seconds:
            return replace(self, shared_tokens=0)
        shared = int(seconds / token_s) - self.overhead_tokens
        least = int(self.overhead_tokens / _OVERHEAD_SHARE_MAX)
        return replace(self, shared_tokens=max(shared, least, 1))


def choose_group(
    lengths: Sequence[int], counts: Mapping[int, int], *, anchor: int, budget: BatchBudget
) -> Sequence[int]:
    """Chooses which lengths may ride with the anchor.

    What waits near the anchor is divided into groups of neighbouring lengths so that running
    them all costs the least: padding against batches. The batch comes out of the anchor's group.

    Args:
        lengths: The lengths that wait, ascending, each once.
        counts: How many sequences of each length wait, at least 1.
        anchor: The length of the sequence that must ride; one of `lengths`.
        budget: The limits.

    Returns:
        The anchor's group, ascending.
    """
    position = bisect_left(lengths, anchor)
    near = lengths[max(position - _NEIGHBOURS, 0) : position + _NEIGHBOURS + 1]
    # The least cost of all lengths before this one, and where their last group begins.
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
                # More than the overhead of all batches that joining these lengths could save.
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
    """How much of a batch is taken.

    Args:
        budget: What the batch may cost.
    """

    def __init__(self, budget: BatchBudget) -> None:
        self._budget = budget
        self.sequences = 0
        self.longest = 1

    @property
    def padded_tokens(self) -> int:
        """What is computed for it."""
        return self.sequences * self.longest

    def room(self, length: int) -> int:
        """Tells how many sequences of this length fit in."""
        return self._budget.room(max(self.longest, length)) - self.sequences

    def add(self, length: int) -> None:
        """Takes up the place of a sequence of this length."""
        self.sequences += 1
        self.longest = max(self.longest, length)
