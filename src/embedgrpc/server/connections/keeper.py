"""Closes idle connections when there are too many, so that new ones find room.

gRPC's own limit refuses new connections instead, so that one client with many idle connections
locks out all others. That limit is kept as a backstop, at a higher number.
"""

import asyncio
import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from embedgrpc.server.connections.activity import Activity
from embedgrpc.server.connections.connection_table import Connection, ConnectionTable, can_be_listed
from embedgrpc.server.connections.listening import port_of
from embedgrpc.server.telemetry.metrics import Reading

_logger = logging.getLogger(__name__)

# Time between two checks: normally, and while there are many connections.
_INTERVAL_S = 0.25
_BUSY_INTERVAL_S = 0.05
# Many means at least this share of the limit.
_MANY = 0.75
# After a check, it pauses for at least this many times the duration of the check.
_PAUSE = 5
# The least time between two equal log lines.
_LOG_INTERVAL_S = 10.0
# gRPC's own limit is this many times the limit.
# How much longer a connection may be idle once it has made a call.
_USED_CREDIT_S = 10.0
_BACKSTOP = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be.

    Attributes:
        total: From all addresses.
        per_address: From one address; 0 for no limit.
    """

    total: int
    per_address: int = 0

    @property
    def busy(self) -> int:
        """How many connections with calls in flight there may be."""
        return self.total + self.total // 2

    def backstop(self, address: str) -> int:
        """Return the number of connections from which on gRPC refuses new ones.

        It leaves room for those that open between two checks, several thousand a second. Where
        the keeper cannot check, it is the limit itself.
        """
        if not _can_check(address):
            return self.total
        return self.total * _BACKSTOP


def _can_check(address: str) -> bool:
    # The peers of a Unix socket have no names, so calls and connections cannot be matched.
    return not address.startswith("unix:") and can_be_listed()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connection that may be closed.

    Attributes:
        connection: The connection.
        idle: Whether it has no call.
        quiet: Whether it has no call except streams without messages.
        idle_since: When it was last used, on the monotonic clock.
        used: Whether it has made a call before.
    """

    connection: Connection
    idle: bool
    quiet: bool
    idle_since: float
    used: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The connections to close.

    Attributes:
        over_address: Those of addresses that exceed their limit.
        over_total: Those that exceed the limit for all addresses.
    """

    over_address: Sequence[Connection] = ()
    over_total: Sequence[Connection] = ()


def choose(candidates: Sequence[Candidate], limits: Limits) -> Choice:
    """Choose the connections to close.

    An address over its limit loses its idlest connections or, if none is idle, its newest. While
    there are too many in total, the address with the most connections loses its idlest one.
    Connections without a call go before those with quiet streams. All others stay, up to one and a
    half times the limit; beyond that, the newest go.
    """
    by_address: dict[str, list[Candidate]] = {}
    for one in candidates:
        by_address.setdefault(one.connection.address, []).append(one)
    over_address: list[Connection] = []
    for address, own in by_address.items():
        excess = len(own) - limits.per_address if limits.per_address else 0
        if excess > 0:
            own.sort(key=_first_to_go)
            over_address += (one.connection for one in own[:excess])
            by_address[address] = own[excess:]
    over_total: list[Connection] = []
    left = len(candidates) - len(over_address)
    for rank, most in enumerate((limits.total, limits.total, limits.busy)):
        over_total += _largest_lose(by_address, rank, left - len(over_total) - most)
    return Choice(over_address, over_total)


def _largest_lose(
    by_address: dict[str, list[Candidate]], rank: int, excess: int
) -> list[Connection]:
    """Choose connections of a rank, one by one, from the address that has the most."""
    if excess <= 0:
        return []
    # The first to go is last: `pop` takes it from there.
    going = {
        address: sorted(
            (one for one in own if _first_to_go(one)[0] == rank), key=_first_to_go, reverse=True
        )
        for address, own in by_address.items()
    }
    counts = {address: len(own) for address, own in by_address.items()}
    heap = [
        (-counts[address], _first_to_go(own[-1]), address) for address, own in going.items() if own
    ]
    heapq.heapify(heap)
    taken: list[Candidate] = []
    while heap and len(taken) < excess:
        _, _, address = heapq.heappop(heap)
        own = going[address]
        taken.append(own.pop())
        counts[address] -= 1
        if own:
            heapq.heappush(heap, (-counts[address], _first_to_go(own[-1]), address))
    gone = {one.connection.inode for one in taken}
    for address, own in by_address.items():
        by_address[address] = [one for one in own if one.connection.inode not in gone]
    return [one.connection for one in taken]


def _first_to_go(candidate: Candidate) -> tuple[int, float]:
    """Return the rank of a connection and its place in that rank; the least goes first."""
    if candidate.idle:
        # A flood of connections that make no call must not push out clients between two calls.
        return 0, candidate.idle_since + (_USED_CREDIT_S if candidate.used else 0)
    if candidate.quiet:
        return 1, candidate.idle_since
    return 2, -candidate.connection.seen_at


class ConnectionKeeper:
    """Keeps the connections of one listener within their limits.

    Attributes:
        closed: How many it has closed, by the limit that they exceeded.
        can_check: Whether it sees the connections.
    """

    def __init__(
        self, name: str, address: str, activity_of: Callable[[str], Activity], limits: Limits
    ) -> None:
        self.closed = {"total": 0, "address": 0}
        self._name = name
        self.can_check = _can_check(address)
        self._table = ConnectionTable(port_of(address))
        self._activity_of = activity_of
        self._limits = limits
        self._backstop = limits.backstop(address)
        self._logged_at = -_LOG_INTERVAL_S
        self._unlogged = 0
        self._full_logged_at = -_LOG_INTERVAL_S

    def read(self) -> Iterator[Reading]:
        """Return how many connections there are and how many were closed. From any thread."""
        if not self.can_check:
            return
        listener = {"listener": self._name}
        yield Reading("embedgrpc.connections.open", len(self._table.read()), listener)
        for limit, count in self.closed.items():
            yield Reading("embedgrpc.connections.closed", count, {**listener, "limit": limit})

    async def run(self) -> None:
        """Check the connections until cancelled."""
        if not self.can_check:
            _logger.warning(
                "idle connections are not closed; beyond the limit new ones are refused",
                extra={"listener": self._name, "max_connections": self._limits.total},
            )
            return
        loop = asyncio.get_running_loop()
        # A check of thousands of connections takes milliseconds: too long for the event loop, whose
        # default executor may be busy with slower work.
        total = self._limits.total
        with ThreadPoolExecutor(1, thread_name_prefix="connections") as thread:
            interval_s = _INTERVAL_S
            while True:
                await asyncio.sleep(interval_s)
                estimate = self._table.estimate()
                interval_s = _BUSY_INTERVAL_S if estimate >= _MANY * total else _INTERVAL_S
                if estimate > total or self._limits.per_address:
                    connections, choice, took_s = await loop.run_in_executor(thread, self._check)
                    self._report(connections, choice)
                    interval_s = max(interval_s, took_s * _PAUSE)

    def _check(self) -> tuple[Sequence[Connection], Choice, float]:
        """Read the connections and close those that exceed the limits. On any thread.

        Returns:
            The connections, those that were closed, and the CPU time in seconds.
        """
        began = time.thread_time()
        connections = self._table.read()
        choice = Choice()
        if len(connections) > self._limits.total or self._limits.per_address:
            now = time.monotonic()
            choice = choose([self._consider(one, now) for one in connections], self._limits)
            for limit, chosen in (("address", choice.over_address), ("total", choice.over_total)):
                self.closed[limit] += sum(map(self._table.close, chosen))
        return connections, choice, time.thread_time() - began

    def _consider(self, connection: Connection, now: float) -> Candidate:
        activity = self._activity_of(connection.peer)
        return Candidate(
            connection,
            idle=activity.idle,
            quiet=activity.quiet(now),
            idle_since=max(connection.active_at, activity.active_at),
            used=activity.active_at > 0,
        )

    def _report(self, connections: Sequence[Connection], choice: Choice) -> None:
        """Log closed connections, and that new ones may be refused, at most every ten seconds."""
        now = time.monotonic()
        closed = len(choice.over_address) + len(choice.over_total)
        left = len(connections) - closed
        self._unlogged += closed
        if self._unlogged and now - self._logged_at >= _LOG_INTERVAL_S:
            counts = Counter(one.address for one in connections)
            address, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
            _logger.warning(
                "idle connections closed",
                extra={
                    "listener": self._name,
                    "closed": self._unlogged,
                    "left": left,
                    "max_connections": self._limits.total,
                    "max_connections_per_address": self._limits.per_address,
                    "largest_address": address,
                    "its_connections": count,
                },
            )
            self._unlogged = 0
            self._logged_at = now
        full = len(connections) >= self._backstop
        if (full or left > self._limits.total) and now - self._full_logged_at >= _LOG_INTERVAL_S:
            _logger.warning(
                "connections may have been refused"
                if full
                else "more connections with calls in flight than there should be",
                extra={
                    "listener": self._name,
                    "connections": len(connections),
                    "max_connections": self._limits.total,
                    "refused_from": self._backstop,
                },
            )
            self._full_logged_at = now
