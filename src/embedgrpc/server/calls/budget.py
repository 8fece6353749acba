"""Budgets, such as memory, that the callers of a server share, so that none can take all of it.

A caller may hold at most twice what it leaves of the whole, and each of its connections at most
twice what it leaves of the caller's share. One connection alone can hold four ninths, and one
caller two thirds. However many callers are greedy, the next one finds something left.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

# How many times what it leaves to others a caller may hold.
_GREED = 2


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """The holder of a part of a budget; one object for each connection.

    Attributes:
        caller: The caller's name: the same for all of its connections.
        connection: The connection.
    """

    caller: str
    connection: str


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call that waits for room."""

    holder: Holder
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
    _by_caller: dict[object, int] = field(default_factory=dict)
    _by_connection: dict[object, int] = field(default_factory=dict)
    # A queue for each caller; the caller that was served last is last.
    _queues: dict[Holder, deque[_Waiter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._uncontended = self.largest(self.total)

    def try_take(self, holder: Holder, amount: int) -> bool:
        """Take an amount at once, if the caller's share has room and none of its calls waits."""
        if self._queues and holder in self._queues:
            return False
        if self.held + amount > self._uncontended and not self._has_room(holder, amount):
            return False
        self.force(holder, amount)
        return True

    async def take(self, holder: Holder, amount: int) -> None:
        """Wait until the caller's share has room, and take an amount.

        Callers are served in turn, and the calls of one caller in order.
        """
        if self.try_take(holder, amount):
            return
        loop = asyncio.get_running_loop()
        waiter = _Waiter(holder, amount, loop.create_future(), loop.time())
        self._queues.setdefault(holder, deque()).append(waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                self.give_back(holder, amount)
            else:
                self._leave(waiter)
            raise

    def force(self, holder: Holder, amount: int) -> None:
        """Take an amount that is in use already, even beyond the limit."""
        if not amount:
            return
        self.held += amount
        self._by_caller[holder.caller] = self._by_caller.get(holder.caller, 0) + amount
        self._by_connection[holder] = self._by_connection.get(holder, 0) + amount

    def give_back(self, holder: Holder, amount: int) -> None:
        """Give back an amount, and serve the callers that wait for it."""
        self.held -= amount
        for amounts, key in ((self._by_caller, holder.caller), (self._by_connection, holder)):
            left = amounts.get(key, 0) - amount
            if left:
                amounts[key] = left
            else:
                amounts.pop(key, None)
        if self._queues:
            self._serve_waiting()

    def waiting(self, *, since: float) -> dict[Holder, int]:
        """Return for each caller how many of its calls have waited since a time or longer."""
        counts = {
            holder: sum(waiter.since <= since for waiter in queue)
            for holder, queue in self._queues.items()
        }
        return {holder: count for holder, count in counts.items() if count}

    def largest(self, amount: int) -> int:
        """Return the amount, but at most what one connection may take."""
        # Rounded as in `_has_room`: else an empty budget might refuse it.
        share = _GREED * self.total // (_GREED + 1)
        return min(amount, _GREED * share // (_GREED + 1))

    def _has_room(self, holder: Holder, amount: int) -> bool:
        held = self._by_caller.get(holder.caller, 0)
        # The most that the caller may take until it holds `_GREED` times what is left.
        share = (_GREED * (self.total - self.held) - held) // (_GREED + 1)
        connection = self._by_connection.get(holder, 0)
        return amount <= (_GREED * share - connection) // (_GREED + 1)

    def _serve_waiting(self) -> None:
        """Serve the callers that wait, in turn, as long as something fits."""
        served = True
        while served and self._queues:
            served = False
            for holder in list(self._queues):
                served |= self._serve_first(holder)

    def _serve_first(self, holder: Holder) -> bool:
        """Serve the first call of a holder, if it fits; return whether it was served."""
        queue = self._queues[holder]
        while queue and queue[0].granted.done():
            queue.popleft()
        served = bool(queue) and self._has_room(holder, queue[0].amount)
        if served:
            waiter = queue.popleft()
            self.force(holder, waiter.amount)
            waiter.granted.set_result(None)
            # It is last now.
            self._queues[holder] = self._queues.pop(holder)
        if not queue:
            del self._queues[holder]
        return served

    def _leave(self, waiter: _Waiter) -> None:
        queue = self._queues.get(waiter.holder)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[waiter.holder]
            if self._queues:
                # There may be room for the call behind it.
                self._serve_waiting()
