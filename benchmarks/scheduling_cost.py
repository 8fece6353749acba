"""The CPU time of scheduling itself: of each step of a policy."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from benchmarks.simulated_policies import Policy

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_EMPTY_CALLS = 20_000


class SchedulingCost:
    """Sums up the CPU time of this thread in the steps of a policy.

    Attributes:
        seconds: The time by step.
        calls: The number of calls by step.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        nothing = self._timed("", lambda: None)
        for _ in range(_EMPTY_CALLS):
            nothing()
        # Reading the clock takes as long as a quick step.
        self._reading_s = self.seconds.pop("") / self.calls.pop("")

    def watch(self, policy: Policy) -> None:
        """Measure the steps of a policy from now on."""
        steps = {
            policy.door: ("admit", "release"),
            policy: ("push", "begin", "finish"),
        }
        for owner, names in steps.items():
            for name in names:
                setattr(owner, name, self._timed(name, getattr(owner, name)))

    def step_s(self, name: str) -> float:
        """Return the time of a step, without that of the measurement."""
        return max(self.seconds[name] - self.calls[name] * self._reading_s, 0.0)

    def _timed(
        self, name: str, step: Callable[_Arguments, _Result]
    ) -> Callable[_Arguments, _Result]:
        self._reading_s = 0.0

        def timed(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
            began_ns = time.thread_time_ns()
            try:
                return step(*arguments, **named)
            finally:
                self.seconds[name] += (time.thread_time_ns() - began_ns) / 1e9
                self.calls[name] += 1

        return timed
