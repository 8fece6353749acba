"""The calls of one measurement."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from grpc import StatusCode


class Outcome(NamedTuple):
    """The times and the status of a call. Times count from the start of its window.

    Attributes:
        planned_s: The planned time of sending; in a closed loop, the time of sending.
        sent_s: The time of sending.
        done_s: The time at which its status arrived.
        code: The status.
    """

    planned_s: float
    sent_s: float
    done_s: float
    code: StatusCode


@dataclass(slots=True)
class Window:
    """A period in which calls are sent.

    Attributes:
        seconds: Its length.
        began: Its start, by `time.perf_counter`.
        outcomes: The calls that were sent, with those that ended after the window.
        unsent: The planned calls that were not sent, because too many were in flight.
        generator_cpu_s: The CPU seconds of this process in the window.
        others_cpu_s: The CPU seconds of programs other than this process and the server.
        server_cpu_s: The CPU seconds of the server, until the last call ended.
    """

    seconds: float
    began: float = field(default_factory=time.perf_counter)
    outcomes: list[Outcome] = field(default_factory=list)
    unsent: int = 0
    generator_cpu_s: float = 0.0
    others_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    def after(self, settled_s: float) -> "Window":
        """Return the window without its first `settled_s` seconds; CPU times shrink with it."""
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
        """Return the time since the start of the window."""
        return time.perf_counter() - self.began
