"""A stream of tei.v1: one response for each message, in the order of the messages."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.calls.requests import RequestStream
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.tei.request import Prepared, TeiAnswer


class ItemStream:
    """The state of one stream. A message that fails ends it: no response has room for an error.

    Args:
        context: The RPC's context.
        requests: Its messages.
        settings: The server's settings.
        prepare: Reads a message, which arrived at a time in nanoseconds of the monotonic clock.
    """

    def __init__(
        self,
        context: Any,
        requests: RequestStream,
        settings: Settings,
        prepare: Callable[[Any, int], Prepared],
    ) -> None:
        self.bidi: BidiStream[asyncio.Task[TeiAnswer]] = BidiStream(
            context, requests, idle_timeout_s=settings.stream_idle_timeout_s
        )
        self.bidi.set_window(settings.max_stream_in_flight_inputs)
        self._prepare = prepare
        self._running: deque[asyncio.Task[TeiAnswer]] = deque()

    async def run(self) -> None:
        """Serve the stream to its end."""
        try:
            await self.bidi.run(self._read, self._pack)
        finally:
            for task in self._running:
                task.cancel()
            self._running.clear()

    async def _read(self) -> None:
        async for message in self.bidi.receive():
            prepared = self._prepare(message, time.monotonic_ns())
            del message
            await self.bidi.accept(1, answer_bytes=prepared.answer_bytes)
            task = asyncio.ensure_future(prepared.run())
            self._running.append(task)
            task.add_done_callback(self._finished)

    def _finished(self, _: "asyncio.Task[TeiAnswer]") -> None:
        while self._running and self._running[0].done():
            self.bidi.answer(self._running.popleft())

    def _pack(self, outbox: "deque[asyncio.Task[TeiAnswer]]") -> tuple[bytes, int]:
        return outbox.popleft().result().to_wire(), 1
