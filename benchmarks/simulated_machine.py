"""A machine that runs batches by a cost model: lanes, and the processors that they share."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from benchmarks.simulated_time import VirtualTime
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.dispatch import Batch


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a batch costs.

    Attributes:
        batch_s: Seconds for being a batch.
        token_s: Seconds for each padded token.
    """

    batch_s: float
    token_s: float

    def seconds(self, tokens: int) -> float:
        """Return how long a batch of so many padded tokens takes."""
        return self.batch_s + self.token_s * tokens


@dataclass(frozen=True, slots=True)
class Machine:
    """What batches run on.

    Attributes:
        cost: What a batch costs that has a processor to itself.
        lanes: How many batches run at once.
        processors: How many of them run at full speed. Lanes of a CPU have one, for a single
            batch takes all cores; lanes with a GPU of their own have one each.
        budget: What a batch may cost.
    """

    cost: CostModel
    lanes: int
    processors: int
    budget: BatchBudget

    @property
    def capacity_tokens_per_s(self) -> float:
        """Tokens that full batches without padding run in a second."""
        tokens = self.budget.tokens
        return min(self.processors, self.lanes) * tokens / self.cost.seconds(tokens)


class Lanes:
    """Batches that run, as fast as the processors allow.

    Args:
        clock: The time.
        machine: What it can do.
        done: Is given each batch that ended, and how long lanes were busy since one last did.
    """

    def __init__(
        self, clock: VirtualTime, machine: Machine, done: Callable[[Batch, float], None]
    ) -> None:
        self._clock = clock
        self._machine = machine
        self._done = done
        self._numbers = count()
        # Those that run get equally much; so each ends when this sum, of what one has got since
        # the start, has grown by what the batch costs.
        self._served_s = 0.0
        self._served_at_s = 0.0
        self._ends: list[tuple[float, int, Batch]] = []
        # Which batch is planned to end next, and at which speed; and which plan that is.
        self._planned: tuple[int, float] | None = None
        self._plan_number = 0
        self._busy_since_s = 0.0

    @property
    def are_busy(self) -> bool:
        """Tells whether no lane is free."""
        return len(self._ends) >= self._machine.lanes

    def start(self, batch: Batch) -> None:
        """Runs a batch on a lane that is free."""
        self._advance()
        if not self._ends:
            self._busy_since_s = self._clock.now_s
        padded_tokens = len(batch.entries) * max(entry[0].tokens for entry in batch.entries)
        end_s = self._served_s + self._machine.cost.seconds(padded_tokens)
        heapq.heappush(self._ends, (end_s, next(self._numbers), batch))
        self._plan()

    @property
    def _speed(self) -> float:
        return min(1.0, self._machine.processors / max(len(self._ends), 1))

    def _advance(self) -> None:
        now_s = self._clock.now_s
        self._served_s += (now_s - self._served_at_s) * self._speed
        self._served_at_s = now_s

    def _plan(self) -> None:
        """Plans the next end, unless it is planned already."""
        if not self._ends:
            return
        end_s, number, _ = self._ends[0]
        planned = number, self._speed
        if planned != self._planned:
            self._planned = planned
            self._plan_number += 1
            plan_number = self._plan_number
            left_s = max(end_s - self._served_s, 0.0) / self._speed
            self._clock.at(self._clock.now_s + left_s, lambda: self._end(plan_number))

    def _end(self, plan_number: int) -> None:
        if plan_number != self._plan_number:
            return
        self._advance()
        end_s, _, batch = heapq.heappop(self._ends)
        # Else rounding might leave the next one a moment too long.
        self._served_s = end_s
        now_s = self._clock.now_s
        elapsed_s, self._busy_since_s = now_s - self._busy_since_s, now_s
        self._plan()
        self._done(batch, elapsed_s)
