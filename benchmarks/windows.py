"""What happened to the calls of one measurement."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from grpc import StatusCode


class Outcome(NamedTuple):
    """What became of a call; times count from the start of its window.

    Attributes:
        planned_s: When it was to be sent; in a closed loop, when it was sent.
        sent_s: When it was sent.
        done_s: When its status was there.
        code: The status.
    """

    planned_s: float
    sent_s: float
    done_s: float
    code: StatusCode


@dataclass(slots=True)
class Window:
    """A time in which calls are sent.

    Attributes:
        seconds: How long.
        began: When, by `time.perf_counter`.
        outcomes: The calls that were sent, also those that were answered after the window.
        unsent: Calls that were planned and not sent, because too many were in flight.
        generator_cpu_s: CPU seconds of this process in the window.
        others_cpu_s: CPU seconds in the window of what is neither this process nor the server.
        server_cpu_s: CPU seconds of the server, until the last call was answered.
    """

    seconds: float
    began: float = field(default_factory=time.perf_counter)
    outcomes: list[Outcome] = field(default_factory=list)
    unsent: int = 0
    generator_cpu_s: float = 0.0
    others_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    def after(self, settled_s: float) -> "Window":
        """Returns what was planned later than so many seconds; of the CPU seconds, their share."""
        seconds = self.seconds - settled_s
        share = seconds / self.seconds
        return Window(
            seconds,
            outcomes=[
                Outcome(
                    one.planned_s - settled_s,
                    one.sent_s - settled_s,
                    one.done_s - settled_s,
                    one.code,
                )
                for one in self.outcomes
                if one.planned_s >= settled_s
            ],
            unsent=self.unsent,
            generator_cpu_s=self.generator_cpu_s * share,
            others_cpu_s=self.others_cpu_s * share,
            server_cpu_s=self.server_cpu_s * share,
        )

    def now_s(self) -> float:
        """Returns the time since the window began."""
        return time.perf_counter() - self.began
