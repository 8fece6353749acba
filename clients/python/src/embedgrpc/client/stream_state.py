"""The state of one stream, for both clients. No I/O, no locks.

An input is read from the caller only when the server's window has room, so endless inputs need no
more memory than the window. The id of an input on the wire is its position; the caller's own id
stays here. An input that no message has room for fails here, alone; its result waits for its turn
and counts in the window.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

import grpc

from embedgrpc.client.channel import Stubs
from embedgrpc.client.errors import (
    BadResponseError,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
)
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.server_description import Limits

MESSAGE_BYTES_MAX: Final = 2**20


class Ready(Protocol):
    """The first response of a stream."""

    @property
    def max_in_flight_inputs(self) -> int:
        """The limit of inputs without a result."""

    @property
    def limits(self) -> Limits:
        """The limits of the server."""


class Result(Protocol):
    """The result of one input."""

    @property
    def id(self) -> Any:
        """The id that the caller gave."""


ResultT = TypeVar("ResultT", bound=Result)
ReadyT = TypeVar("ReadyT", bound=Ready)


class StreamState(ABC, Generic[ResultT, ReadyT]):
    """The inputs of a stream that were sent, that have a result, and that may be sent next.

    Args:
        inputs: The inputs of the caller.
        setup: The first request.
        in_input_order: Whether results must come in the order of the inputs.
        timeout_s: The longest wait for the next response, in seconds.
        request_limit: The size limit of requests.

    Attributes:
        method: Returns the method of the call among the stubs.
        ready: The first response; None before it.
        input_tokens: The tokens of all results so far.
        input_error: The exception of the caller's iterable.
    """

    method: Callable[[Stubs], Any]
    _answer_step: ClassVar[str]

    def __init__(
        self,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        setup: Any,
        in_input_order: bool,
        timeout_s: float,
        request_limit: RequestLimit,
    ) -> None:
        if isinstance(inputs, str):
            raise TypeError("inputs is one str; give an iterable")
        self.inputs: Final = inputs
        self.setup: Final = setup
        self.timeout_s: Final = timeout_s
        self.ready: ReadyT | None = None
        self.input_tokens = 0
        self.input_error: Exception | None = None
        self._request_limit = request_limit
        self._in_input_order = in_input_order
        self._inputs_ended = False
        self._read_count = 0
        self._caller_ids: dict[str, Any] = {}  # of inputs without a result, by position
        # The results of inputs that were not sent, until they are returned; by position.
        self._failed: dict[int, ResultT] = {}
        self._waiting_since = time.monotonic()

    @abstractmethod
    def has_room(self) -> bool:
        """Return whether to send `next_message`, or to read another input from the caller."""

    @abstractmethod
    def add(self, item: object) -> Any:
        """Add one input.

        Returns:
            The message to send now; None if there is none yet.

        Raises:
            TypeError: The item has the wrong type.
            ValueError: A text is not valid Unicode.
        """

    def next_message(self) -> Any:
        """Return the next message of the inputs that were added; None to read another input."""
        return None

    def end_inputs(self, error: Exception | None = None) -> Any:
        """Record the end of the inputs.

        Args:
            error: The exception of the caller's iterable, to raise after the last result.

        Returns:
            The last message; None if all inputs were sent.
        """
        self._inputs_ended = True
        self.input_error = error

    def receive(self, response: Any) -> list[ResultT]:
        """Record one response.

        Returns:
            Its results, with those of inputs that failed before them; none for the first
            response.

        Raises:
            BadResponseError: The response is out of step, or has a result for an unknown input.
        """
        step = response.WhichOneof("step")
        due = "ready" if self.ready is None else self._answer_step
        if step != due:
            raise BadResponseError(f"the stream sent {step} where {due} was due")
        if self.ready is None:
            self.ready = self._accept(response.ready)
            self._request_limit.lower(self.ready.limits.max_request_bytes)
            return []
        answered: dict[str, ResultT] = {}
        for result in self._results_of(response):
            if result.id not in self._caller_ids or result.id in answered:
                raise BadResponseError("a result has the id of no unanswered input")
            answered[result.id] = self._decode(result, self._caller_ids[result.id])
        results: list[ResultT] = []
        for position, result_of_input in answered.items():
            results += self.take_failed()
            del self._caller_ids[position]
            results.append(result_of_input)
        return results + self.take_failed()

    def take_failed(self) -> list[ResultT]:
        """Return the results of inputs that failed without being sent and whose turn it is."""
        due = self._due()
        return [self._failed.pop(position) for position in due]

    def has_failed(self) -> bool:
        """Return whether `take_failed` would return a result."""
        return bool(self._due())

    def begin_wait(self) -> None:
        """Start the wait for a response: the time before is the caller's, not the server's."""
        self._waiting_since = time.monotonic()

    def patience_s(self) -> float:
        """Return the longest further wait, in seconds; at 0 or below the server is overdue."""
        owes = self.ready is None or len(self._caller_ids) > self._unsent_count()
        waited_s = time.monotonic() - self._waiting_since if owes else 0.0
        return self.timeout_s - waited_s

    def overdue_error(self) -> EmbedGrpcError:
        """Return the error to raise when the server is overdue."""
        return DeadlineExpiredError(
            f"the stream had no response for {self.timeout_s:g} s",
            code=grpc.StatusCode.DEADLINE_EXCEEDED,
            reason="",
        )

    def outcome(self, failure: EmbedGrpcError | None) -> Exception | None:
        """Return the exception to raise at the end of the stream; None if every input has a result.

        Args:
            failure: The error that the call ended with; None after OK.
        """
        if failure is None:
            if self._inputs_ended and not self._caller_ids:
                return self.input_error
            failure = ConnectionFailedError("the server ended the stream before the last result")
        unanswered = [(int(position), each) for position, each in self._caller_ids.items()]
        unanswered += [(position, result.id) for position, result in self._failed.items()]
        unanswered.sort(key=lambda pair: pair[0])
        failure.unanswered_ids = tuple(caller_id for _, caller_id in unanswered)
        return failure

    @abstractmethod
    def _accept(self, message: Any) -> ReadyT:
        """Return the terms of the stream; raise BadResponseError if they allow no input."""

    @abstractmethod
    def _results_of(self, response: Any) -> Iterable[Any]:
        """Return the results of a response; add its usage."""

    @abstractmethod
    def _decode(self, result: Any, caller_id: Any) -> ResultT:
        """Decode one result; raise BadResponseError if it is malformed."""

    @abstractmethod
    def _unsent_count(self) -> int:
        """Return the number of inputs in `_caller_ids` that were not sent yet."""

    def _message_bytes_max(self) -> int:
        return min(MESSAGE_BYTES_MAX, self._request_limit.max_bytes)

    def _due(self) -> list[int]:
        """Return the positions of inputs that failed and whose turn it is."""
        if not self._failed or not self._in_input_order or not self._caller_ids:
            return list(self._failed)
        oldest = int(next(iter(self._caller_ids)))
        return [position for position in self._failed if position < oldest]
