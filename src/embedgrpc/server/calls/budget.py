"""Memory that the calls of a server share, so that no caller can take all of it.

A caller is an address, and the connections from it; both get at most twice what is left: an
address of the whole, a connection of what its address could get. One connection alone can take
four ninths, and one address two thirds. However many are greedy, another finds something left.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

# How many times what is left for others one may hold.
_GREED = 2


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """Who holds a part of a budget; one object for each connection.

    Attributes:
        address: Who calls, whatever the number of connections.
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
        held: How much is taken now. It exceeds the limit only by what was taken by `force`.
    """

    total: int
    held: int = 0
    # Up to here there is room for everybody.
    _quiet: int = field(init=False)
    _by_address: dict[str, int] = field(default_factory=dict)
    _by_connection: dict[Caller, int] = field(default_factory=dict)
    # One line for each caller; the caller that was served last stands last.
    _lines: dict[Caller, deque[_Waiter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._quiet = self.largest(self.total)

    def try_take(self, caller: Caller, amount: int) -> bool:
        """Take an amount at once, if the caller's share has room and none of its calls waits."""
        if self._lines and caller in self._lines:
            return False
        if self.held + amount > self._quiet and not self._has_room(caller, amount):
            return False
        self.force(caller, amount)
        return True

    async def take(self, caller: Caller, amount: int) -> None:
        """Wait until the caller's share has room, and take an amount.

        The calls of one caller go in the order in which they came, callers in turn.
        """
        if self.try_take(caller, amount):
            return
        loop = asyncio.get_running_loop()
        waiter = _Waiter(caller, amount, loop.create_future(), loop.time())
        self._lines.setdefault(caller, deque()).append(waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                self.give_back(caller, amount)
            else:
                self._leave(waiter)
            raise

    def force(self, caller: Caller, amount: int) -> None:
        """Take an amount that is in use already, room or not."""
        if not amount:
            return
        self.held += amount
        self._by_address[caller.address] = self._by_address.get(caller.address, 0) + amount
        self._by_connection[caller] = self._by_connection.get(caller, 0) + amount

    def give_back(self, caller: Caller, amount: int) -> None:
        """Give back what was taken, and let in who waits for it."""
        self.held -= amount
        _subtract(self._by_address, caller.address, amount)
        _subtract(self._by_connection, caller, amount)
        if self._lines:
            self._let_in()

    def waiting(self, *, since: float) -> dict[Caller, int]:
        """Tell for each caller how many of its calls have waited since a time or longer."""
        counts = {
            caller: sum(waiter.since <= since for waiter in line)
            for caller, line in self._lines.items()
        }
        return {caller: count for caller, count in counts.items() if count}

    def largest(self, amount: int) -> int:
        """Return the amount, or the most that any caller may take where that is less."""
        # Rounded as in `_has_room`, or an empty budget might not take it.
        share = _GREED * self.total // (_GREED + 1)
        return min(amount, _GREED * share // (_GREED + 1))

    def _has_room(self, caller: Caller, amount: int) -> bool:
        address = self._by_address.get(caller.address, 0)
        # The most that the address may take until it holds `_GREED` times what is left.
        share = (_GREED * (self.total - self.held) - address) // (_GREED + 1)
        connection = self._by_connection.get(caller, 0)
        return amount <= (_GREED * share - connection) // (_GREED + 1)

    def _let_in(self) -> None:
        """Serve the callers that wait, in turn, as long as anything fits."""
        served = True
        while served and self._lines:
            served = False
            for caller in list(self._lines):
                served |= self._let_in_one(caller)

    def _let_in_one(self, caller: Caller) -> bool:
        """Serve the first call of a caller, if it fits; tell whether one was served."""
        line = self._lines[caller]
        while line and line[0].granted.done():
            line.popleft()
        served = bool(line) and self._has_room(caller, line[0].amount)
        if served:
            waiter = line.popleft()
            self.force(caller, waiter.amount)
            waiter.granted.set_result(None)
            # To the end of the order.
            self._lines[caller] = self._lines.pop(caller)
        if not line:
            del self._lines[caller]
        return served

    def _leave(self, waiter: _Waiter) -> None:
        line = self._lines.get(waiter.caller)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[waiter.caller]
            if self._lines:
                # It may have stood in front of one for which there is room.
                self._let_in()


def _subtract(amounts: dict, key: object, amount: int) -> None:  # type: ignore[type-arg]
    left = amounts.get(key, 0) - amount
    if left:
        amounts[key] = left
    else:
        amounts.pop(key, None)
