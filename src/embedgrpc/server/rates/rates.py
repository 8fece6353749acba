"""The accounts of callers, and the limits that hold for all doors together.

A request, and its place among the caller's open calls, are counted when a call begins, before
anything of it is read. Tokens are taken by an estimate from the size of the message, before it is
parsed. When the call has ended, the estimate is given back; the tokens that the model read were
taken meanwhile. So a bad request counts as a request, and uses no tokens.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from embedgrpc.server.caller import NO_LIMITS, Caller, Proof
from embedgrpc.server.rates.account import Account, Sleep
from embedgrpc.server.rates.limits import RateLimits, merge
from embedgrpc.server.rates.networks import network_of
from embedgrpc.server.rates.totals import RateTotals
from embedgrpc.server.telemetry.metrics import Reading

# Callers without open calls whose accounts are kept; about half a kilobyte each.
_KNOWN_CALLERS_MAX: Final = 16_384


class Accounts:
    """The accounts of callers. Those that were used last are remembered.

    Who forgets the account of a caller gives it a full one later. Accounts with open calls are
    never forgotten; there are no more of them than calls.

    Args:
        totals: Counts what becomes of calls.
        clock: Returns the time in seconds; monotonic.
        sleep: Sleeps so many seconds.
        idle_max: How many accounts without open calls are remembered.
    """

    def __init__(
        self,
        totals: RateTotals,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        idle_max: int = _KNOWN_CALLERS_MAX,
    ) -> None:
        self._totals = totals
        self._clock = clock
        self._sleep = sleep
        self._idle_max = idle_max
        self._open: dict[str, Account] = {}
        # The one that has been idle for longest is first.
        self._idle: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open) + len(self._idle)

    def enter(self, name: str, limits: RateLimits) -> Account:
        """Return the account of a caller, which has one more open call."""
        account = self._open.get(name)
        if account is None:
            account = self._idle.pop(name, None)
            if account is None:
                account = Account(name, limits, self._totals, clock=self._clock, sleep=self._sleep)
            self._open[name] = account
        if account.limits is not limits and account.limits != limits:
            account.set_limits(limits)
        account.open_calls += 1
        return account

    def leave(self, account: Account) -> None:
        """Record that a call has ended."""
        account.open_calls -= 1
        if not account.open_calls:
            self._idle[account.name] = self._open.pop(account.name)
            if len(self._idle) > self._idle_max:
                self._idle.popitem(last=False)


class Rates:
    """The accounts of all callers of a server. For one event loop.

    Args:
        limits: The limits of callers that have none of their own.
        clock: Returns the time in seconds; monotonic.
        sleep: Sleeps so many seconds.
    """

    def __init__(
        self,
        limits: RateLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._limits = limits
        self._totals = RateTotals()
        # Addresses do not make the server forget callers that proved who they are.
        self._proved = Accounts(self._totals, clock=clock, sleep=sleep)
        self._others = Accounts(self._totals, clock=clock, sleep=sleep)

    def enter(self, caller: Caller) -> Account | None:
        """Return the account of a caller, which has one more open call.

        Returns:
            The account, to be given to `leave` when the call has ended; None without limits.
        """
        limits = self._limits
        if caller.limits is not NO_LIMITS:
            limits = merge(limits, caller.limits)
        if not limits:
            return None
        if caller.proof is Proof.ANONYMOUS:
            return self._others.enter(network_of(caller.name), limits)
        return self._proved.enter(caller.name, limits)

    def leave(self, account: Account, caller: Caller) -> None:
        """Record that a call has ended."""
        (self._others if caller.proof is Proof.ANONYMOUS else self._proved).leave(account)

    def read(self) -> Iterator[Reading]:
        """Return the value of every metric. From any thread."""
        yield from self._totals.read()
        callers = len(self._proved) + len(self._others)
        yield Reading("embedgrpc.rate_limits.callers", callers, {})
