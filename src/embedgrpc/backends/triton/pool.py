"""Sends each request to the endpoint that has least to do, and to another where that is lost."""

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

# The longest that a look at an endpoint takes.
_LOOK_S = 2.0
# So close to its deadline a call that is cancelled is taken to be late.
_LEAVING_S = 0.1
# Even where nothing is due, so that an endpoint that was just lost is not forgotten for long.
_ROUND_S = 0.25

_logger = logging.getLogger(__name__)


class Pool:
    """The endpoints that serve one model. Used on one event loop alone.

    Args:
        endpoints: At least one.
        model: The model's name, for the log.
        availability: Is told whether any endpoint can be called.
        clock: Tells the time, in seconds; the same as that of the circuits.
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
        self._clock = clock
        self._graph: ServedGraph | None = None
        self._refused: set[str] = set()
        self._turns = itertools.count(1)
        self._watching: list[asyncio.Task[None]] = []

    async def begin(self) -> ServedGraph:
        """Asks all endpoints what they serve, and watches them from then on.

        Returns:
            What the first that answers serves, with the instances of all: one that does not
            answer is taken to have as many as the first.

        Raises:
            BackendUnreachableError: None answers.
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
        # Each by itself: one that hangs is no reason to look at the others later.
        loop = asyncio.get_running_loop()
        self._watching = [loop.create_task(self._watch(one)) for one in self._endpoints]
        return graphs[0]

    @property
    def instances(self) -> int:
        """How many requests all endpoints run at once, as far as they have said."""
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
        """Runs a request on one endpoint, or on others where that one is lost.

        Args:
            request: To be sent.
            timeout_s: How long all of it may take.
            callers_limit: Whether that is because those who wait give no more.
            metadata: To be sent along.

        Returns:
            The answer.

        Raises:
            BackendError: No endpoint gave one.
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
                raise error
        if tried:
            raise error
        raise BackendUnreachableError(f"none of {len(self._endpoints)} endpoints is there")

    async def close(self) -> None:
        """Ends all calls and stops watching."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in self._endpoints))

    def _choose(self, tried: set[str]) -> Endpoint | None:
        """The endpoint that has least to do of those that are well and were not tried.

        Of several that whose last turn is longest ago: each gets its share of a light load.
        """
        well = [one for one in self._endpoints if one.circuit.closed and one.address not in tried]
        return min(well, key=lambda one: (one.in_flight, one.turn), default=None)

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
            # Whoever waits leaves at the deadline, and is often the first to say so.
            if self._clock() > until - _LEAVING_S:
                endpoint.circuit.doubt()
            raise
        except grpc.aio.AioRpcError as error:
            failure = judge(
                endpoint.address,
                error.code(),
                error.details() or "",
                callers_gave_up=callers_limit,
            )
            self._take(endpoint, failure)
            return failure
        except EndpointSilentError as error:
            return Failure(error, lost=True)
        except grpc.aio.UsageError:
            # The channel is closed.
            return Failure(BackendUnreachableError("the backend is being closed"))
        endpoint.circuit.succeed()
        return answer

    def _take(self, endpoint: Endpoint, failure: Failure) -> None:
        alone = not any(one.circuit.closed for one in self._endpoints if one is not endpoint)
        if failure.lost:
            self._lose(endpoint, str(failure.error))
        elif failure.blamed and (failure.silent or not alone):
            # A server that answers is better than none, and it may be a batch that it fails on.
            was_closed = endpoint.circuit.closed
            endpoint.circuit.fail()
            if was_closed:
                self._note(endpoint, str(failure.error))

    def _lose(self, endpoint: Endpoint, problem: str) -> None:
        was_closed = endpoint.circuit.closed
        endpoint.circuit.lose()
        if was_closed:
            self._note(endpoint, problem)

    def _note(self, endpoint: Endpoint, problem: str) -> None:
        """Tells who wants to know that an endpoint is not called any more, if that is so."""
        if not endpoint.circuit.closed:
            _logger.warning(
                "endpoint lost",
                extra={"model": self._model, "endpoint": endpoint.address, "problem": problem},
            )
        self._availability.set(any(one.circuit.closed for one in self._endpoints))

    async def _watch(self, endpoint: Endpoint) -> None:
        """Looks at an endpoint now and then, for ever."""
        while True:
            if endpoint.circuit.due_at <= self._clock():
                await self._look(endpoint)
            await asyncio.sleep(_ROUND_S)

    async def _look(self, endpoint: Endpoint) -> None:
        """Looks at an endpoint: it must serve the same model as before, whether called or not."""
        began_closed = endpoint.circuit.closed
        lost = True
        try:
            found = await endpoint.describe(timeout_s=_LOOK_S, connect=not began_closed)
            problem = self._refuse(endpoint, found)
        except BackendError as error:
            problem = str(error)
            lost = not isinstance(error, EndpointSilentError)
        except Exception:
            # Whatever it is, nobody else would ever look again.
            _logger.exception("endpoint not looked at", extra={"endpoint": endpoint.address})
            problem = f"{endpoint.address} could not be looked at"
            lost = False
        is_closed = endpoint.circuit.closed
        if problem:
            endpoint.circuit.find_ill(lost=lost)
            if is_closed:
                self._note(endpoint, problem)
            if not lost and not endpoint.circuit.closed:
                # What waits there may be done by another in time.
                endpoint.give_up()
        elif is_closed == began_closed:
            endpoint.circuit.find_well()
            if not is_closed:
                self._welcome(endpoint)
        # Else a call found it lost meanwhile, which is newer than what was seen.

    def _welcome(self, endpoint: Endpoint) -> None:
        _logger.info("endpoint back", extra={"model": self._model, "endpoint": endpoint.address})
        self._availability.set(True)

    async def _describe(self, endpoint: Endpoint) -> ServedGraph | BackendError:
        try:
            return await endpoint.describe(timeout_s=_LOOK_S)
        except BackendError as error:
            return error

    def _refuse(self, endpoint: Endpoint, found: ServedGraph) -> str:
        """Takes what an endpoint serves if it is what the others do; else tells why not."""
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
