"""The way from threads to the endpoints, whose calls live on an event loop."""

import asyncio
import concurrent.futures
import inspect
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from embedgrpc.backends.base import (
    Availability,
    BackendCancelledError,
    BackendDeadlineError,
    BackendUnreachableError,
    RunContext,
)
from embedgrpc.backends.triton.channels import TlsFiles, open_channel
from embedgrpc.backends.triton.circuit import Circuit
from embedgrpc.backends.triton.endpoint import Endpoint
from embedgrpc.backends.triton.loops import LoopThread
from embedgrpc.backends.triton.pool import Pool
from embedgrpc.backends.triton.served_graph import ServedGraph

# How much longer than a call's limit the loop may take to say so.
_LOOP_S = 2.0
# To ask all endpoints what they serve, each with its own limit.
_BEGIN_S = 15.0
_CLOSE_S = 5.0

T = TypeVar("T")


class Connection:
    """Connections to the endpoints of one model, for threads. Not for the loop's own.

    Args:
        addresses: HOST:PORT of each.
        model: The model's name there.
        version: Its version there; empty for the one that the server chooses.
        tls: What TLS needs; None for connections without.
        timeout_s: The longest that a call may take.
        loop: Runs the calls, for as long as the connection is open; None to run one here.

    Attributes:
        model: The model's name there.
        version: Its version there.
        availability: Whether any endpoint can be called.
        graph: What the endpoints serve.

    Raises:
        BackendUnreachableError: No endpoint answers.
        BackendError: The model cannot be used.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        model: str,
        version: str = "",
        tls: TlsFiles | None = None,
        timeout_s: float,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self.availability = Availability()
        self._addresses = addresses
        self._tls = tls
        self._timeout_s = timeout_s
        self._thread = None if loop else LoopThread()
        self._loop = loop or self._thread.loop  # type: ignore[union-attr]  # one of the two
        self._closing = False
        self._pool: Pool | None = None
        try:
            self.graph: ServedGraph = self._wait(self._begin(), timeout_s=_BEGIN_S)
        except BaseException:
            self.close()
            raise

    @property
    def instances(self) -> int:
        """How many requests all endpoints run at once."""
        return self._pool.instances if self._pool else 0

    def infer(self, request: bytes, context: RunContext, *, until: float) -> bytes:
        """Runs a request. Blocks, never for longer than the limits say.

        Args:
            request: To be sent.
            context: For whom.
            until: When the time of the whole batch is over, as `time.monotonic` has it.

        Returns:
            The answer.

        Raises:
            BackendError: There is none.
        """
        if self._closing or self._pool is None:
            raise BackendUnreachableError("the backend is being closed")
        now = time.monotonic()
        if context.deadline <= now:
            raise BackendDeadlineError("the deadline passed before the model was run")
        timeout_s = max(min(context.deadline, until) - now, 0.0)
        call = self._pool.infer(
            request,
            timeout_s=timeout_s,
            callers_limit=context.deadline <= until,
            metadata=context.metadata,
        )
        return self._wait(call, timeout_s=timeout_s + _LOOP_S, context=context)

    def time_over(self) -> float:
        """Tells when a batch that begins now must be done, as `time.monotonic` has it."""
        return time.monotonic() + self._timeout_s

    def close(self) -> None:
        """Ends all calls; those that wait for one get an error. Blocks."""
        self._closing = True
        try:
            if self._pool is not None:
                self._wait(self._pool.close(), timeout_s=_CLOSE_S)
        except BackendUnreachableError:
            pass  # the loop ended first, and the connections with it
        finally:
            if self._thread is not None:
                self._thread.close()
                self._thread = None

    async def _begin(self) -> ServedGraph:
        # Here, as channels belong to the loop on which they are made.
        endpoints = [
            Endpoint(
                address,
                open_channel(address, self._tls),
                model=self.model,
                version=self.version,
                circuit=Circuit(clock=time.monotonic, random=random.random),
            )
            for address in self._addresses
        ]
        self._pool = Pool(endpoints, model=self.model, availability=self.availability)
        return await self._pool.begin()

    def _wait(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        timeout_s: float,
        context: RunContext | None = None,
    ) -> T:
        """Runs a coroutine on the loop and waits for it, but not for ever."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise BackendUnreachableError("the event loop is closed") from None
        if context is not None:
            context.cancellation.add_callback(future.cancel)
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            if context is not None and context.cancellation.cancelled:
                raise BackendCancelledError("nobody waits for the batch any more") from None
            raise BackendUnreachableError("the backend is being closed") from None
        except TimeoutError:
            future.cancel()
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()
            raise BackendUnreachableError("the event loop does not answer") from None
        finally:
            if context is not None:
                context.cancellation.remove_callback(future.cancel)
