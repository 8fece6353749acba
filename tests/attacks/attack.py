"""What an attack is, and what came of one."""

import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Attack:
    """Something that a hostile, or a careless, client does.

    Attributes:
        name: Its name on the command line.
        what: One line for the table.
        run: Attacks the server at an address (HOST:PORT) for so many seconds, then lets go of
            all that it holds; returns what it did, such as "412 refusals".
        flags: Flags of `embedgrpc serve` to attack.
        test_s: How long the test suite attacks.
        in_suite: Whether the test suite attacks at all, and not the command alone.
        over_http: Whether it attacks the HTTP port; another caller then uses that, too.
    """

    name: str
    what: str
    run: Callable[[str, float], Awaitable[str]]
    flags: tuple[str, ...] = ()
    test_s: float = 3.0
    in_suite: bool = True
    over_http: bool = False


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long the calls of the innocent caller took in one phase, in seconds.

    Attributes:
        values_s: One for each call that was answered.
        failures: The statuses of the others.
    """

    values_s: Sequence[float]
    failures: Sequence[str]

    @property
    def p50_ms(self) -> float:
        """The median in ms."""
        return statistics.median(self.values_s) * 1e3 if self.values_s else float("inf")

    @property
    def p99_ms(self) -> float:
        """The 99th percentile in ms."""
        if not self.values_s:
            return float("inf")
        ordered = sorted(self.values_s)
        return ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))] * 1e3

    @property
    def max_s(self) -> float:
        """The longest in seconds."""
        return max(self.values_s, default=float("inf"))


@dataclass(frozen=True, slots=True)
class Phases:
    """How an innocent caller fared.

    Attributes:
        quiet: Before the attacks.
        during: Calls that began during the attacks.
        after: Calls that began after them.
        control: Calls that began while a process was attacked that does nothing; the attacker
            takes CPU time from the server in this phase, too.
    """

    quiet: Latencies
    during: Latencies
    after: Latencies
    control: Latencies

    @property
    def failures(self) -> Sequence[str]:
        """The statuses of all calls that failed."""
        phases = (self.quiet, self.during, self.after, self.control)
        return tuple(failure for one in phases for failure in one.failures)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attack did to a server and to another caller of it.

    Attributes:
        grpc: The innocent caller over gRPC.
        http: The one over HTTP, if there is one.
        rss_before_bytes: Resident memory of the server before.
        rss_peak_bytes: The most during the attack and after it.
        rss_after_bytes: What is left afterwards.
        attack_s: How long an attack took.
        done: What the attacks report.
        server_s: CPU time of the server during the attacks, in seconds for a second.
        quiet_server_s: The same before the attacks, for the innocent callers alone.
    """

    grpc: Phases
    http: Phases | None
    rss_before_bytes: int
    rss_peak_bytes: int
    rss_after_bytes: int
    attack_s: float
    done: Sequence[str]
    server_s: float
    quiet_server_s: float

    @property
    def callers(self) -> Sequence[Phases]:
        """The innocent callers."""
        return (self.grpc, self.http) if self.http else (self.grpc,)

    @property
    def rss_growth_bytes(self) -> int:
        """How much memory the attack took at its worst."""
        return self.rss_peak_bytes - self.rss_before_bytes
