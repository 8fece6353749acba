"""Sends each request to the least loaded endpoint, and to another one if that is lost."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence

import grpc
import grpc.aio

from embedgrpc.backends.base import Availability, BackendError, BackendUnreachableError
from embedgrpc.backends.triton.endpoint import Endpoint, EndpointSilentError
from embedgrpc.backends.triton.served_graph import ServedGraph
from embedgrpc.backends.triton.statuses import Failure, judge

# The time limit of each call of a health check.
_CHECK_S = 2.0
# A call that is cancelled this close to its deadline counts as late.
_LATE_S = 0.1
# Between two looks at the clock: calls may make a health check due earlier than planned.
_ROUND_S = 0.25

_logger = logging.getLogger(__name__)


class Pool:
    """The endpoints that serve one model. Used on one event loop alone.

    Args:
        endpoints: The endpoints; at least one.
        model: The model's name, for the log.
        availability: Set to whether any endpoint can be called.
        clock: Returns the time, in seconds; the clock of the circuits.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        model: str,
        availability: Availability,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = endpoints
        self._model = model
        self._availability = availability
        availability.endpoints = lambda: {one.address: one.circuit.closed for one in endpoints}
        self._clock = clock
        self._graph: ServedGraph | None = None
        self._refused: set[str] = set()
        self._turns = itertools.count(1)
        self._watching: list[asyncio.Task[None]] = []

    async def begin(self) -> ServedGraph:
        """Ask all endpoints to describe the model, and watch their health from then on.

        Returns:
            The description of the first endpoint that answers.

        Raises:
            BackendUnreachableError: No endpoint answers.
            BackendError: The model cannot be used.
        """
        found = await asyncio.gather(*(self._describe(one) for one in self._endpoints))
        graphs = [one for one in found if isinstance(one, ServedGraph)]
        if not graphs:
            wrong = [one for one in found if type(one) is BackendError]
            raise (*wrong, *(one for one in found if isinstance(one, BackendError)))[0]
        self._graph = graphs[0]
        for endpoint, one in zip(self._endpoints, found, strict=True):
            if not isinstance(one, ServedGraph) or self._refuse(endpoint, one):
                endpoint.circuit.lose()
        # One task each: an endpoint that hangs must not delay the checks of others.
        loop = asyncio.get_running_loop()
        self._watching = [loop.create_task(self._watch(one)) for one in self._endpoints]
        return graphs[0]

    @property
    def instances(self) -> int:
        """The number of requests that all endpoints run at once.

        An endpoint that has not answered yet counts as much as the first that has.
        """
        counts = [one.graph.instances for one in self._endpoints if one.graph]
        return sum(counts) + (len(self._endpoints) - len(counts)) * (counts[0] if counts else 1)

    async def infer(
        self,
        request: bytes,
        *,
        timeout_s: float,
        callers_limit: bool,
        metadata: Sequence[tuple[str, str]],
    ) -> bytes:
        """Send a request to one endpoint, or to others if that one is lost; return the answer.

        Args:
            request: The serialized request.
            timeout_s: The time limit for all attempts together.
            callers_limit: Whether that limit is the callers' deadline, and not the server's own.
            metadata: Keys and values to send along.

        Raises:
            BackendError: No endpoint answered.
        """
        until = self._clock() + timeout_s
        tried: set[str] = set()
        error = BackendError("never called")
        while (left_s := until - self._clock()) > 0 or not tried:
            endpoint = self._choose(tried)
            if endpoint is None:
                break
            tried.add(endpoint.address)
            endpoint.turn = next(self._turns)
            failure = await self._try(
                endpoint, request, timeout_s=left_s, callers_limit=callers_limit, metadata=metadata
            )
            if isinstance(failure, bytes):
                return failure
            error = failure.error
            if not failure.lost:
                break
        if tried:
            raise error
        raise BackendUnreachableError(f"none of {len(self._endpoints)} endpoints is reachable")

    async def close(self) -> None:
        """End all calls and health checks."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in self._endpoints))

    def _choose(self, tried: set[str]) -> Endpoint | None:
        """Return the least loaded of the endpoints with a closed circuit that were not tried.

        If several are, return the one whose last request is the oldest, to share a light load.
        """
        left = [one for one in self._endpoints if one.circuit.closed and one.address not in tried]
        return min(left, key=lambda one: (one.in_flight, one.turn), default=None)

    async def _try(
        self,
        endpoint: Endpoint,
        request: bytes,
        *,
        timeout_s: float,
        callers_limit: bool,
        metadata: Sequence[tuple[str, str]],
    ) -> bytes | Failure:
        until = self._clock() + timeout_s
        try:
            answer = await endpoint.infer(request, timeout_s=timeout_s, metadata=metadata)
        except asyncio.CancelledError:
            # At the deadline, the callers' cancellation often comes before gRPC's own timeout.
            if self._clock() > until - _LATE_S:
                endpoint.circuit.doubt()
            raise
        except grpc.aio.AioRpcError as error:
            failure = judge(
                endpoint.address,
                error.code(),
                error.details() or "",
                callers_gave_up=callers_limit,
            )
            self._record(endpoint, failure)
            return failure
        except EndpointSilentError as error:
            return Failure(error, lost=True)
        except grpc.aio.UsageError:
            # The channel is closed.
            return Failure(BackendUnreachableError("the backend is being closed"))
        endpoint.circuit.succeed()
        return answer

    def _record(self, endpoint: Endpoint, failure: Failure) -> None:
        circuit, was_closed = endpoint.circuit, endpoint.circuit.closed
        alone = not any(one.circuit.closed for one in self._endpoints if one is not endpoint)
        if failure.lost:
            circuit.lose()
        # Keep the only server that answers: it is better than none, and the batch may be to blame.
        elif failure.blamed and (failure.silent or not alone):
            circuit.fail()
        if was_closed:
            self._report(endpoint, str(failure.error))

    def _report(self, endpoint: Endpoint, problem: str) -> None:
        """Log an endpoint whose circuit has just opened, and set the availability."""
        if not endpoint.circuit.closed:
            _logger.warning(
                "endpoint lost",
                extra={"model": self._model, "endpoint": endpoint.address, "problem": problem},
            )
        self._availability.set(any(one.circuit.closed for one in self._endpoints))

    async def _watch(self, endpoint: Endpoint) -> None:
        """Check an endpoint whenever it is due, until cancelled."""
        while True:
            if endpoint.circuit.due_at <= self._clock():
                await self._check(endpoint)
            await asyncio.sleep(_ROUND_S)

    async def _check(self, endpoint: Endpoint) -> None:
        """Check that an endpoint is healthy and serves the same model as the others."""
        began_closed = endpoint.circuit.closed
        lost = True
        try:
            found = await endpoint.describe(timeout_s=_CHECK_S, connect=not began_closed)
            problem = self._refuse(endpoint, found)
        except BackendError as error:
            problem = str(error)
            lost = not isinstance(error, EndpointSilentError)
        except Exception:
            # Without this, an unexpected error would end all checks of the endpoint.
            _logger.exception("endpoint check failed", extra={"endpoint": endpoint.address})
            problem = f"{endpoint.address} could not be checked"
            lost = False
        is_closed = endpoint.circuit.closed
        if problem:
            endpoint.circuit.fail_check(lost=lost)
            if is_closed:
                self._report(endpoint, problem)
            if not lost and not endpoint.circuit.closed:
                # Another endpoint may run its requests in time.
                endpoint.give_up()
        elif is_closed == began_closed:
            endpoint.circuit.pass_check()
            if not is_closed:
                self._report_back(endpoint)
        # Otherwise a call lost the endpoint meanwhile, which is newer than this check.

    def _report_back(self, endpoint: Endpoint) -> None:
        _logger.info("endpoint back", extra={"model": self._model, "endpoint": endpoint.address})
        self._availability.set(True)

    async def _describe(self, endpoint: Endpoint) -> ServedGraph | BackendError:
        try:
            return await endpoint.describe(timeout_s=_CHECK_S)
        except BackendError as error:
            return error

    def _refuse(self, endpoint: Endpoint, found: ServedGraph) -> str:
        """Accept an endpoint that serves the same model as the others, or return why not."""
        difference = found.find_difference(self._graph) if self._graph else ""
        if not difference:
            endpoint.graph = found
            self._refused.discard(endpoint.address)
            return ""
        problem = f"{endpoint.address} has {difference}"
        if endpoint.address not in self._refused:
            self._refused.add(endpoint.address)
            _logger.error(
                "endpoint serves another model: not used",
                extra={"model": self._model, "endpoint": endpoint.address, "problem": problem},
            )
        return problem
