"""The accounts of callers, and the limits that hold for all doors together.

A request, and its place among the caller's open calls, are counted when a call begins, before
anything of it is read. Tokens are taken by an estimate from the size of the message, before it is
parsed. When the call has ended, the estimate is given back; the tokens that the model read were
taken meanwhile. So a bad request counts as a request, and uses no tokens.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from embedgrpc.server.caller import NO_LIMITS, Caller, Proof
from embedgrpc.server.rates.account import Account, Sleep
from embedgrpc.server.rates.limits import RateLimits, merge
from embedgrpc.server.rates.networks import network_of
from embedgrpc.server.rates.totals import RateTotals
from embedgrpc.server.telemetry.metrics import Reading

# Callers whose accounts are kept, of each kind; about half a kilobyte each.
_KNOWN_CALLERS_MAX: Final = 16_384


class Accounts:
    """The accounts of callers. Those that were used last are remembered.

    Who forgets the account of a caller gives it a full one later. Accounts with open calls are
    never forgotten; there are no more of them than calls.

    Args:
        totals: Counts what becomes of calls.
        clock: Returns the time in seconds; monotonic.
        sleep: Sleeps so many seconds.
        known_max: How many accounts are remembered, unless more have open calls.
    """

    def __init__(
        self,
        totals: RateTotals,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        known_max: int = _KNOWN_CALLERS_MAX,
    ) -> None:
        self._totals = totals
        self._clock = clock
        self._sleep = sleep
        self._known_max = known_max
        # In the order in which they may be forgotten.
        self._known: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def enter(self, name: str, limits: RateLimits) -> Account:
        """Return the account of a caller, which has one more open call."""
        account = self._known.get(name)
        if account is None:
            account = self._add(name, limits)
        elif account.limits is not limits and account.limits != limits:
            account.set_limits(limits)
        account.was_used = True
        account.open_calls += 1
        return account

    def _add(self, name: str, limits: RateLimits) -> Account:
        if len(self._known) >= self._known_max:
            self._forget_one()
        account = Account(name, limits, self._totals, clock=self._clock, sleep=self._sleep)
        self._known[name] = account
        return account

    def _forget_one(self) -> None:
        """Forget an account that was not used since it was last considered.

        Those that were used go to the end. So a use costs no more than a mark, and it takes few
        steps to find one, on average.
        """
        for _ in range(2 * len(self._known)):
            name, account = self._known.popitem(last=False)
            if not account.was_used and not account.open_calls:
                return
            account.was_used = False
            self._known[name] = account


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
            The account, which has to `leave` when the call has ended; None without limits.
        """
        limits = self._limits_of(caller)
        if not limits:
            return None
        if caller.proof is Proof.ANONYMOUS:
            return self._others.enter(network_of(caller.name), limits)
        return self._proved.enter(caller.name, limits)

    def change(self, limits: RateLimits, in_use: Iterable[tuple[Account, Caller]]) -> None:
        """Change the limits of callers that have none of their own; what they have used stays used.

        Args:
            limits: The limits.
            in_use: The accounts with open calls. Others follow at their next call.
        """
        self._limits = limits
        for account, caller in in_use:
            account.set_limits(self._limits_of(caller))

    def _limits_of(self, caller: Caller) -> RateLimits:
        if caller.limits is NO_LIMITS:
            return self._limits
        return merge(self._limits, caller.limits)

    def read(self) -> Iterator[Reading]:
        """Return the value of every metric. From any thread."""
        yield from self._totals.read()
        callers = len(self._proved) + len(self._others)
        yield Reading("embedgrpc.rate_limits.callers", callers, {})
