"""Knows the streams that are open, to tell them that the server is about to stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedgrpc.server.exchange import Exchange


class Draining:
    """The open streams."""

    def __init__(self) -> None:
        self._exchanges: set[Exchange[Any]] = set()
        self._draining = False

    @contextmanager
    def watch(self, exchange: Exchange[Any]) -> Iterator[None]:
        """Counts a stream as open; one that comes too late ends at once."""
        self._exchanges.add(exchange)
        if self._draining:
            exchange.drain()
        try:
            yield
        finally:
            self._exchanges.discard(exchange)

    def drain(self) -> None:
        """Lets every stream answer what it has taken in, and then end."""
        self._draining = True
        for exchange in self._exchanges:
            exchange.drain()
