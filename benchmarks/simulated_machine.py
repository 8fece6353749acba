"""A machine that runs batches by a cost model: lanes that share processors."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from benchmarks.simulated_time import VirtualTime
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.dispatch import Batch


@dataclass(frozen=True, slots=True)
class CostModel:
    """The cost of a batch.

    Attributes:
        batch_s: The fixed time of a batch, in seconds.
        token_s: The time of a padded token, in seconds.
    """

    batch_s: float
    token_s: float

    def seconds(self, tokens: int) -> float:
        """Return the time of a batch by its padded tokens, in seconds."""
        return self.batch_s + self.token_s * tokens


@dataclass(frozen=True, slots=True)
class Machine:
    """The lanes and processors that run batches.

    Attributes:
        cost: The cost of a batch that does not share its processor.
        lanes: The number of batches that run at once.
        processors: The number of batches that run at full speed. All lanes of a CPU share one,
            since a single batch uses all cores; lanes with a GPU each have one each.
        budget: The budget of a batch.
    """

    cost: CostModel
    lanes: int
    processors: int
    budget: BatchBudget

    @property
    def capacity_tokens_per_s(self) -> float:
        """The tokens a second of full batches without padding."""
        tokens = self.budget.tokens
        return min(self.processors, self.lanes) * tokens / self.cost.seconds(tokens)


class Lanes:
    """The lanes of a machine, and the batches that run on them.

    Args:
        clock: The clock.
        machine: The machine.
        done: Called with each batch that ends, and the busy time since the last one ended.
    """

    def __init__(
        self, clock: VirtualTime, machine: Machine, done: Callable[[Batch, float], None]
    ) -> None:
        self._clock = clock
        self._machine = machine
        self._done = done
        self._numbers = count()
        # Running batches share the processors equally. So a batch ends when this sum, of the
        # service that each has had since the start, has grown by its cost.
        self._served_s = 0.0
        self._served_at_s = 0.0
        self._ends: list[tuple[float, int, Batch]] = []
        # The batch that ends next, the speed that this assumes, and the number of this plan.
        self._planned: tuple[int, float] | None = None
        self._plan_number = 0
        self._busy_since_s = 0.0

    @property
    def are_busy(self) -> bool:
        """Whether no lane is free."""
        return len(self._ends) >= self._machine.lanes

    def start(self, batch: Batch) -> None:
        """Run a batch on a free lane."""
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
        """Plan the next end of a batch, unless that plan exists."""
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
        # Otherwise rounding might make the next one end late.
        self._served_s = end_s
        now_s = self._clock.now_s
        elapsed_s, self._busy_since_s = now_s - self._busy_since_s, now_s
        self._plan()
        self._done(batch, elapsed_s)
