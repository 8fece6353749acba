"""The registry of open streams, which ends them in time.

A stream ends when the server is about to stop. It also ends before its connection does: gRPC's
core asks a client to leave an old connection, and later cuts off the streams that are still open
on it. The core does not report which connections those are. So a stream may be open for as long
as a connection may, and the core's grace is longer than that: every stream ends by itself first,
with a result for every input that it has accepted.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedgrpc.engine.errors import ShuttingDownError
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.calls.open_call import current_call

# Streams that began together do not end, and begin anew, at the same moment.
_JITTER = 0.1


class OpenStreams:
    """The open streams."""

    def __init__(self, *, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self._streams: set[BidiStream[Any]] = set()
        self._draining = False

    @contextmanager
    def watch(self, stream: BidiStream[Any]) -> Iterator[None]:
        """Register a stream; end it at once if the server is about to stop."""
        self._streams.add(stream)
        if self._draining:
            _end_for_stop(stream)
        call = current_call()
        if call is not None:
            call.end = stream.drain
        age_s = self._max_age_s * random.uniform(1 - _JITTER, 1)  # noqa: S311 - no secret
        ending = asyncio.get_running_loop().call_later(age_s, _end_for_age, stream)
        try:
            yield
        finally:
            ending.cancel()
            self._streams.discard(stream)

    def drain(self) -> None:
        """Let every stream answer what it has accepted, and then end."""
        self._draining = True
        for stream in self._streams:
            _end_for_stop(stream)


def _end_for_stop(stream: BidiStream[Any]) -> None:
    stream.drain(ShuttingDownError("the server is about to stop", metadata={"label": "STOPPING"}))


def _end_for_age(stream: BidiStream[Any]) -> None:
    stream.drain(
        ShuttingDownError(
            "the stream has been open as long as a connection may be: open another",
            metadata={"label": "MAX_AGE"},
        )
    )
