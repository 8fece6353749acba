"""Waits until a model that new calls do not find any more is not called any more."""

import asyncio
from contextlib import suppress

from embedgrpc.engine.errors import ShuttingDownError
from embedgrpc.server.calls.open_call import OpenCall
from embedgrpc.server.calls.open_calls import OpenCalls
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.settings import Settings

# What a call may take beside the limit of its duration.
_MARGIN_S = 5.0


class ModelDrain:
    """Waits for the calls of models.

    Args:
        calls: The open calls.
        settings: How long calls may take.
    """

    def __init__(self, calls: OpenCalls, settings: Settings) -> None:
        self._calls = calls
        self._grace_s = settings.shutdown_grace_s
        self._max_s = settings.max_unary_s + _MARGIN_S
        self._ended = asyncio.Event()
        calls.observers.append(self._note_end)

    def calls_of(self, model: ServedModel) -> int:
        """Return how many open calls have found a model."""
        return sum(model in call.record.models for _, call in self._calls.by_task())

    async def wait(self, model: ServedModel) -> int:
        """Wait for the calls of a model; return how many do not end.

        Streams may go on as long as calls may in a stop. Then they answer what they have accepted,
        and their clients open others.
        """
        await self._wait(model, self._grace_s)
        if self.calls_of(model):
            for _, call in self._calls.by_task():
                if call.end is not None and model in call.record.models:
                    call.end(
                        ShuttingDownError(
                            "the model of the stream is not served any more, or was replaced: open"
                            " another",
                            metadata={"label": "MODEL_CLOSED"},
                        )
                    )
            await self._wait(model, self._max_s)
        return self.calls_of(model)

    async def _wait(self, model: ServedModel, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.calls_of(model):
                    self._ended.clear()
                    await self._ended.wait()

    def _note_end(self, _: OpenCall) -> None:
        self._ended.set()
