"""Slows down addresses whose requests are wrong, or that open very many connections.

What is refused costs CPU time, too. A client that sends nothing else would take the event loop from
all others. So each address may cause refusals for a small share of that time; beyond it, its
refusals wait. Only they do: other requests of the same address, which may be that of a proxy, are
answered at once.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_logger = logging.getLogger(__name__)

# What a refused request takes of the event loop, as measured: in all, for a connection that is
# closed after it, for each byte of its body, which is read and searched, and for each byte of a
# head that is no HTTP or too large.
_REQUEST_S: Final = 0.2e-3
_CONNECTION_S: Final = 0.3e-3
_BODY_BYTE_S: Final = 1.5e-9
_HEAD_BYTE_S: Final = 30e-9
# The share of the event loop that one address may take by refusals.
_SHARE: Final = 0.02
# So much it may take at once: some hundreds of small mistakes in a burst are never slowed down.
_BURST_S: Final = 0.1
# The longest that a refusal waits. Also what an address can owe at the most.
_PAUSE_S_MAX: Final = 10.0
# Connections that an address which is slowed down may open in a second, and at once.
_CONNECTIONS_PER_S: Final = 50
_CONNECTIONS_AT_ONCE: Final = 50
# Addresses that are remembered.
_ADDRESSES_MAX: Final = 4096
_LOG_INTERVAL_S: Final = 10.0


def cost_s(*, body_bytes: int = 0, head_bytes: int = 0, closes: bool = False) -> float:
    """Return about how long a refused request keeps the event loop busy, in seconds.

    Args:
        body_bytes: Those of its body that were read.
        head_bytes: Those of a head that was not understood.
        closes: Whether its connection is closed, because its end is not known.
    """
    seconds = _REQUEST_S + _BODY_BYTE_S * body_bytes + _HEAD_BYTE_S * head_bytes
    return seconds + _CONNECTION_S * closes


@dataclass(slots=True)
class _Address:
    """What an address has done.

    Attributes:
        paid_at: When its share has paid for all of its refusals.
        connects_at: When it may open its next connection.
    """

    paid_at: float
    connects_at: float


class Pace:
    """Keeps account of addresses. For one event loop.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses: dict[str, _Address] = {}
        self._stopping = asyncio.Event()
        self._logged_at = -_LOG_INTERVAL_S

    def charge(self, address: str, seconds: float) -> float:
        """Charge an address for a refusal.

        Args:
            address: The address.
            seconds: What the refusal took of the event loop.

        Returns:
            How long it should wait, in seconds; 0 in most cases.
        """
        now = self._clock()
        one = self._find(address, now)
        one.paid_at = min(
            max(one.paid_at, now) + seconds / _SHARE, now + _PAUSE_S_MAX + _BURST_S / _SHARE
        )
        pause_s = max(one.paid_at - now - _BURST_S / _SHARE, 0.0)
        if pause_s and now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            _logger.warning(
                "refusals slowed down", extra={"address": address, "pause_s": round(pause_s, 3)}
            )
        return pause_s

    def is_slowed_down(self, address: str) -> bool:
        """Return whether refusals of an address wait now."""
        one = self._addresses.get(address)
        return one is not None and one.paid_at - self._clock() > _BURST_S / _SHARE

    def may_connect(self, address: str) -> bool:
        """Count a connection that an address opens; return whether it is not too early."""
        now = self._clock()
        one = self._find(address, now)
        if one.connects_at - now > _CONNECTIONS_AT_ONCE / _CONNECTIONS_PER_S:
            return False
        one.connects_at = max(one.connects_at, now) + 1 / _CONNECTIONS_PER_S
        return True

    async def wait(self, seconds: float) -> None:
        """Wait, but not beyond the end of the server."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def stop(self) -> None:
        """Let nothing wait any longer."""
        self._stopping.set()

    def _find(self, address: str, now: float) -> _Address:
        one = self._addresses.pop(address, None) or _Address(now, now)
        # The one that was used last is last.
        self._addresses[address] = one
        if len(self._addresses) > _ADDRESSES_MAX:
            del self._addresses[next(iter(self._addresses))]
        return one
