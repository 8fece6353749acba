"""Calls endpoints from threads; the calls themselves run on an event loop."""

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

# How long after a call's time limit the loop may report it.
_LOOP_S = 2.0
# For asking all endpoints at once about their model, each with its own limits.
_BEGIN_S = 15.0
_CLOSE_S = 5.0

T = TypeVar("T")


class Connection:
    """The connections to the endpoints of one model. Its methods block: not for the loop's thread.

    Args:
        addresses: HOST:PORT of each endpoint.
        model: The model's name on the servers.
        version: Its version there; empty for the server's choice.
        tls: Certificates and key; None for connections without TLS.
        timeout_s: The time limit of a batch.
        loop: The event loop for the calls, which must outlive the connection; None to start one in
            a thread.

    Attributes:
        model: The model's name on the servers.
        version: Its version there.
        availability: Whether any endpoint can be called.
        graph: The model as the endpoints describe it.

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
        """The number of requests that all endpoints run at once."""
        return self._pool.instances if self._pool else 0

    def infer(self, request: bytes, context: RunContext, *, until: float) -> bytes:
        """Send a request and return the answer. Blocks until the time limit at most.

        Args:
            request: The serialized request.
            context: The callers' limits.
            until: The time limit of the whole batch, in seconds of `time.monotonic`.

        Raises:
            BackendError: No endpoint answered the request.
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

    def next_time_limit(self) -> float:
        """Return the time limit of a batch that begins now, in seconds of `time.monotonic`."""
        return time.monotonic() + self._timeout_s

    def close(self) -> None:
        """End all calls with an error. Blocks."""
        self._closing = True
        try:
            if self._pool is not None:
                self._wait(self._pool.close(), timeout_s=_CLOSE_S)
        except BackendUnreachableError:
            pass  # the loop ended first, and closed the connections
        finally:
            if self._thread is not None:
                self._thread.close()
                self._thread = None

    async def _begin(self) -> ServedGraph:
        # Channels belong to the loop on which they are made.
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
        """Run a coroutine on the loop, and wait for it within a time limit."""
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
                raise BackendCancelledError("no caller waits for the batch any more") from None
            raise BackendUnreachableError("the backend is being closed") from None
        except TimeoutError:
            future.cancel()
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()
            raise BackendUnreachableError("the event loop does not answer") from None
        finally:
            if context is not None:
                context.cancellation.remove_callback(future.cancel)
