"""The queue of one work class: decides which caller's turn it is.

Callers take turns. Each is charged for the tokens that ran for it, and the one charged least goes
first, with its most urgent sequence. Its own sequences of similar length fill the batch before
those of others.

Source: deficit round robin (Shreedhar and Varghese, 1995) with the virtual time of start-time fair
queueing (Goyal, Vin and Cheng, 1996), so that a caller saves nothing up while it sends nothing.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from operator import attrgetter

from embedgrpc.engine.scheduling.batching import BatchBudget, BatchSize, choose_group
from embedgrpc.engine.work import BatchEntry, QueuedSequence

# A queue is cleaned up when it holds this many removed sequences beyond the number queued.
_STALE_ENTRIES = 64
# One of this many turns goes by age alone.
_TURNS_BY_AGE = 4


class CallerQueue:
    """The sequences of one caller in one class, by urgency and by length.

    Attributes:
        charged: Tokens that ran for it divided by its weight, on the class's virtual clock.
        size: Number of queued sequences.
        lengths: Their lengths, ascending, each once.
    """

    def __init__(self, charged: float) -> None:
        self.charged = charged
        self.size = 0
        self.lengths: list[int] = []
        # A heap; of equally urgent ones, the first to arrive goes first.
        self._by_urgency: list[tuple[float, int, QueuedSequence]] = []
        self._by_length: dict[int, deque[QueuedSequence]] = {}
        self._counts: dict[int, int] = {}
        self._arrivals = count()
        # Number of sequences in `_by_length`, removed ones included.
        self._held = 0

    def push(self, queued: QueuedSequence) -> None:
        """Queue a sequence."""
        length = queued.tokens
        heapq.heappush(self._by_urgency, (queued.urgency, next(self._arrivals), queued))
        if length not in self._counts:
            insort(self.lengths, length)
            self._by_length[length] = deque()
            self._counts[length] = 0
        self._by_length[length].append(queued)
        self._counts[length] += 1
        self._held += 1
        self.size += 1

    def most_urgent(self) -> QueuedSequence:
        """Return the sequence that should run first. The queue must not be empty."""
        while self._by_urgency[0][-1].gone:
            heapq.heappop(self._by_urgency)
        return self._by_urgency[0][-1]

    def first(self, length: int) -> QueuedSequence | None:
        """Return the sequence of this length that arrived first, or None."""
        waiting = self._by_length.get(length)
        while waiting and waiting[0].gone:
            waiting.popleft()
            self._held -= 1
        return waiting[0] if waiting else None

    def remove(self, queued: QueuedSequence) -> None:
        """Remove a sequence."""
        queued.gone = True
        length = queued.tokens
        self.size -= 1
        self._counts[length] -= 1
        if not self._counts[length]:
            self._held -= len(self._by_length.pop(length))
            del self._counts[length], self.lengths[bisect_left(self.lengths, length)]
        if max(len(self._by_urgency), self._held) > 2 * self.size + _STALE_ENTRIES:
            self._forget_gone()

    def _forget_gone(self) -> None:
        """Drop the removed sequences from both indexes."""
        self._by_urgency = [entry for entry in self._by_urgency if not entry[-1].gone]
        heapq.heapify(self._by_urgency)
        for length, waiting in self._by_length.items():
            self._by_length[length] = deque(queued for queued in waiting if not queued.gone)
        self._held = self.size


class WorkClassQueue:
    """The sequences of one class, by caller.

    Args:
        weights: Shares of callers relative to others; 1 for those not listed.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._callers: dict[str, CallerQueue] = {}
        self._counts: dict[int, int] = {}
        self._lengths: list[int] = []
        self._virtual_time = 0.0
        self._turns = 0
        self.size = 0

    def push(self, queued: QueuedSequence) -> None:
        """Queue a sequence."""
        name = queued.job.call.caller
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = CallerQueue(self._virtual_time)
        caller.push(queued)
        length = queued.tokens
        if length not in self._counts:
            insort(self._lengths, length)
            self._counts[length] = 0
        self._counts[length] += 1
        self.size += 1

    def remove(self, queued: QueuedSequence) -> None:
        """Remove a sequence."""
        name = queued.job.call.caller
        caller = self._callers[name]
        caller.remove(queued)
        if not caller.size:
            del self._callers[name]
        length = queued.tokens
        self._counts[length] -= 1
        if not self._counts[length]:
            del self._counts[length], self._lengths[bisect_left(self._lengths, length)]
        self.size -= 1

    def pop_batch(
        self, budget: BatchBudget, pop_equal: Callable[[QueuedSequence], BatchEntry], now: float
    ) -> tuple[list[BatchEntry], int]:
        """Remove and return the best batch available.

        Args:
            budget: Its limits.
            pop_equal: Removes a sequence and all that equal it, and returns them as an entry.
            now: The time, in seconds.

        Returns:
            The entries, the anchor's first, and their padded tokens; empty when nothing is queued.
        """
        if not self.size:
            return [], 0
        turn = self._turn(budget.tokens, now)
        anchor = turn.most_urgent()
        group = choose_group(self._lengths, self._counts, anchor=anchor.tokens, budget=budget)
        shortest, longest = group[0], group[-1]
        filled = BatchSize(budget)
        filled.add(anchor.tokens)
        batch = [self._charge(pop_equal, anchor)]
        for caller in self._in_turn(turn):
            if filled.room(filled.longest) <= 0:
                break
            begin = bisect_left(caller.lengths, shortest)
            near = caller.lengths[begin : bisect_right(caller.lengths, longest)]
            if len(near) > 1:
                near.sort(key=lambda length: (abs(length - anchor.tokens), -length))
            for length in near:
                while filled.room(length) > 0 and (queued := caller.first(length)):
                    filled.add(length)
                    batch.append(self._charge(pop_equal, queued))
        return batch, filled.padded_tokens

    def _turn(self, quantum: int, now: float) -> CallerQueue:
        """Choose the caller to serve: of those charged least, the one with the most urgent work.

        Differences below a quantum of tokens do not count, so that deadlines matter. Some turns go
        to the oldest overdue work instead: a caller charged more than others gets no turns, and a
        length that no other caller sends would never run.
        """
        callers = list(self._callers.values())
        least = min(map(_CHARGED, callers))
        self._virtual_time = max(self._virtual_time, least)
        if len(callers) == 1:
            return callers[0]
        self._turns += 1
        if self._turns % _TURNS_BY_AGE == 0:
            oldest = min(callers, key=_most_urgent)
            if _most_urgent(oldest) < now:
                return oldest
        limit = least + quantum
        return min((one for one in callers if one.charged < limit), key=_most_urgent)

    def _in_turn(self, first: CallerQueue) -> Iterator[CallerQueue]:
        """Yield this caller, then the others, those charged least first."""
        yield first
        others = [caller for caller in self._callers.values() if caller is not first]
        yield from sorted(others, key=_CHARGED)

    def _charge(
        self, pop_equal: Callable[[QueuedSequence], BatchEntry], queued: QueuedSequence
    ) -> BatchEntry:
        name = queued.job.call.caller
        self._callers[name].charged += queued.tokens / self._weights.get(name, 1.0)
        return pop_equal(queued)


_CHARGED = attrgetter("charged")


def _most_urgent(caller: CallerQueue) -> float:
    return caller.most_urgent().urgency
