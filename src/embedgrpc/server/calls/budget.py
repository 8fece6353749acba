"""Budgets, such as memory, that the callers of a server share, so that none can take all of it.

An address may hold at most twice what it leaves of the whole, and each of its connections at most
twice what it leaves of the address's share. One connection alone can hold four ninths, and one
address two thirds. However many callers are greedy, the next one finds something left.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

# How many times what it leaves to others a caller may hold.
_GREED = 2


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """The holder of a part of a budget; one object for each connection.

    Attributes:
        address: The same for all connections of a client.
        connection: The connection.
    """

    address: str
    connection: str


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call that waits for room."""

    caller: Caller
    amount: int
    granted: "asyncio.Future[None]"
    since: float


@dataclass(slots=True)
class Budget:
    """A limited amount of something, such as bytes. For one event loop.

    Args:
        total: The limit.

    Attributes:
        held: The amount that is taken now. Only `force` can make it exceed the limit.
    """

    total: int
    held: int = 0
    # Up to this amount there is room for every caller.
    _uncontended: int = field(init=False)
    _by_address: dict[str, int] = field(default_factory=dict)
    _by_connection: dict[Caller, int] = field(default_factory=dict)
    # A queue for each caller; the caller that was served last is last.
    _queues: dict[Caller, deque[_Waiter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._uncontended = self.largest(self.total)

    def try_take(self, caller: Caller, amount: int) -> bool:
        """Take an amount at once, if the caller's share has room and none of its calls waits."""
        if self._queues and caller in self._queues:
            return False
        if self.held + amount > self._uncontended and not self._has_room(caller, amount):
            return False
        self.force(caller, amount)
        return True

    async def take(self, caller: Caller, amount: int) -> None:
        """Wait until the caller's share has room, and take an amount.

        Callers are served in turn, and the calls of one caller in order.
        """
        if self.try_take(caller, amount):
            return
        loop = asyncio.get_running_loop()
        waiter = _Waiter(caller, amount, loop.create_future(), loop.time())
        self._queues.setdefault(caller, deque()).append(waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                self.give_back(caller, amount)
            else:
                self._leave(waiter)
            raise

    def force(self, caller: Caller, amount: int) -> None:
        """Take an amount that is in use already, even beyond the limit."""
        if not amount:
            return
        self.held += amount
        self._by_address[caller.address] = self._by_address.get(caller.address, 0) + amount
        self._by_connection[caller] = self._by_connection.get(caller, 0) + amount

    def give_back(self, caller: Caller, amount: int) -> None:
        """Give back an amount, and serve the callers that wait for it."""
        self.held -= amount
        _subtract(self._by_address, caller.address, amount)
        _subtract(self._by_connection, caller, amount)
        if self._queues:
            self._serve_waiting()

    def waiting(self, *, since: float) -> dict[Caller, int]:
        """Return for each caller how many of its calls have waited since a time or longer."""
        counts = {
            caller: sum(waiter.since <= since for waiter in queue)
            for caller, queue in self._queues.items()
        }
        return {caller: count for caller, count in counts.items() if count}

    def largest(self, amount: int) -> int:
        """Return the amount, but at most what one connection may take."""
        # Rounded as in `_has_room`: else an empty budget might refuse it.
        share = _GREED * self.total // (_GREED + 1)
        return min(amount, _GREED * share // (_GREED + 1))

    def _has_room(self, caller: Caller, amount: int) -> bool:
        address = self._by_address.get(caller.address, 0)
        # The most that the address may take until it holds `_GREED` times what is left.
        share = (_GREED * (self.total - self.held) - address) // (_GREED + 1)
        connection = self._by_connection.get(caller, 0)
        return amount <= (_GREED * share - connection) // (_GREED + 1)

    def _serve_waiting(self) -> None:
        """Serve the callers that wait, in turn, as long as something fits."""
        served = True
        while served and self._queues:
            served = False
            for caller in list(self._queues):
                served |= self._serve_first(caller)

    def _serve_first(self, caller: Caller) -> bool:
        """Serve the first call of a caller, if it fits; return whether it was served."""
        queue = self._queues[caller]
        while queue and queue[0].granted.done():
            queue.popleft()
        served = bool(queue) and self._has_room(caller, queue[0].amount)
        if served:
            waiter = queue.popleft()
            self.force(caller, waiter.amount)
            waiter.granted.set_result(None)
            # It is last now.
            self._queues[caller] = self._queues.pop(caller)
        if not queue:
            del self._queues[caller]
        return served

    def _leave(self, waiter: _Waiter) -> None:
        queue = self._queues.get(waiter.caller)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[waiter.caller]
            if self._queues:
                # There may be room for the call behind it.
                self._serve_waiting()


def _subtract(amounts: dict, key: object, amount: int) -> None:  # type: ignore[type-arg]
    left = amounts.get(key, 0) - amount
    if left:
        amounts[key] = left
    else:
        amounts.pop(key, None)
