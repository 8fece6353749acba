"""Closes idle connections where there are too many, so that new ones find room.

gRPC's own limit closes the new ones instead, and so one client with many idle connections locks
everybody out. That limit stays as a backstop, further away.
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
from embedgrpc.server.connections.kernel import Connection, ConnectionTable, can_be_listed
from embedgrpc.server.connections.listening import port_of
from embedgrpc.server.telemetry.metrics import Reading

_logger = logging.getLogger(__name__)

# Time between two looks: at whether connections may be many, and while they are.
_INTERVAL_S = 0.25
_BUSY_INTERVAL_S = 0.05
# Connections are many from this share of the limit on.
_MANY = 0.75
# How much longer than a look the pause after it is, whatever the number of connections.
_PAUSE = 5
# Time between two lines of the log that say the same.
_LOG_INTERVAL_S = 10.0
# How many times the limit gRPC's own is.
_BACKSTOP = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be.

    Attributes:
        total: In all.
        per_address: From one address; 0 where there is no limit.
    """

    total: int
    per_address: int = 0

    @property
    def busy(self) -> int:
        """How many may stay that have calls in flight."""
        return self.total + self.total // 2

    def backstop(self, address: str) -> int:
        """Return from how many connections on gRPC is to refuse new ones.

        It leaves room for those that come in between two looks, several thousand a second. Where
        nobody looks it is the limit itself.

        Args:
            address: Where the server listens.
        """
        if not _can_look(address):
            return self.total
        return self.total * _BACKSTOP


def _can_look(address: str) -> bool:
    # The other end of a Unix socket has no name by which calls and connections are matched.
    return not address.startswith("unix:") and can_be_listed()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connection that may have to go.

    Attributes:
        connection: The connection.
        idle: Whether it has no call.
        quiet: Whether it has no call, or none but streams on which nothing happens.
        idle_since: When it was last used, on the monotonic clock.
    """

    connection: Connection
    idle: bool
    quiet: bool
    idle_since: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be closed.

    Attributes:
        over_address: Connections of addresses that have more than one may have.
        over_total: Connections because there are too many in all.
    """

    over_address: Sequence[Connection] = ()
    over_total: Sequence[Connection] = ()


def choose(candidates: Sequence[Candidate], limits: Limits) -> Choice:
    """Choose the connections to close.

    An address that has more than its limit loses its idlest ones and, if none is idle, its
    newest. Where there are too many in all, the address that has the most loses its idlest one,
    again and again. Connections without a call go before those with quiet streams. Others stay
    until they are half as many again; then the newest go.
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
    """Take so many connections of a rank, the first to go of whatever address has the most."""
    if excess <= 0:
        return []
    # The first to go is last, where it is taken from.
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
    """Return the rank of a connection and its place there; what is least goes first."""
    if candidate.idle:
        return 0, candidate.idle_since
    if candidate.quiet:
        return 1, candidate.idle_since
    return 2, -candidate.connection.seen_at


class ConnectionKeeper:
    """Keeps the connections of one listener within their limits.

    Args:
        name: What it is called in logs and metrics.
        address: Where it listens, with the port that was taken.
        activity_of: Tells what goes on at a connection, by its peer.
        limits: How many there may be.
    """

    def __init__(
        self, name: str, address: str, activity_of: Callable[[str], Activity], limits: Limits
    ) -> None:
        self.closed = {"total": 0, "address": 0}
        self._name = name
        self._can_look = _can_look(address)
        self._table = ConnectionTable(port_of(address))
        self._activity_of = activity_of
        self._limits = limits
        self._backstop = limits.backstop(address)
        self._logged_at = -_LOG_INTERVAL_S
        self._unlogged = 0
        self._full_logged_at = -_LOG_INTERVAL_S

    def read(self) -> Iterator[Reading]:
        """Tell how many connections there are and how many were closed. From any thread."""
        if not self._can_look:
            return
        listener = {"listener": self._name}
        yield Reading("embedgrpc.connections.open", len(self._table.read()), listener)
        for limit, count in self.closed.items():
            yield Reading("embedgrpc.connections.closed", count, {**listener, "limit": limit})

    async def run(self) -> None:
        """Look after the connections until cancelled."""
        if not self._can_look:
            _logger.warning(
                "idle connections are not closed; beyond the limit new ones are refused",
                extra={"listener": self._name, "max_connections": self._limits.total},
            )
            return
        loop = asyncio.get_running_loop()
        # Looking at thousands of connections takes milliseconds, which the event loop cannot
        # spare, and its own threads may be busy with slower work.
        total = self._limits.total
        with ThreadPoolExecutor(1, thread_name_prefix="connections") as thread:
            interval_s = _INTERVAL_S
            while True:
                await asyncio.sleep(interval_s)
                estimate = self._table.estimate()
                interval_s = _BUSY_INTERVAL_S if estimate >= _MANY * total else _INTERVAL_S
                if estimate > total or self._limits.per_address:
                    connections, choice, took_s = await loop.run_in_executor(thread, self._look)
                    self._report(connections, choice)
                    interval_s = max(interval_s, took_s * _PAUSE)

    def _look(self) -> tuple[Sequence[Connection], Choice, float]:
        """Read the connections and close those that must go. On any thread.

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
        )

    def _report(self, connections: Sequence[Connection], choice: Choice) -> None:
        """Log what was closed, and that new ones may be refused, but not all the time."""
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
