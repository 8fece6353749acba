"""The state of one stream, for both clients. No I/O, no locks.

An input is read from the caller only when the server's window has room, so endless inputs need no
more memory than the window. The id of an input on the wire is its position; the caller's own id
stays here. An input that no message has room for fails here, alone; its result waits for its turn
and counts in the window.

An input is kept until its result is returned. So a stream whose call ends early can go on with
another call, which sends the inputs without a result again.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, ClassVar, Final, Generic, Protocol, TypeAlias, TypeVar

import grpc

from embedgrpc.client.channel import Stubs
from embedgrpc.client.errors import (
    BadResponseError,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
    ModelChangedError,
    ShuttingDownError,
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
    def fingerprint(self) -> str:
        """The id of the model's results."""

    @property
    def limits(self) -> Limits:
        """The limits of the server."""


class Result(Protocol):
    """The result of one input."""

    @property
    def id(self) -> Any:
        """The id that the caller gave."""

    @property
    def error(self) -> EmbedGrpcError | None:
        """The reason why there is no result."""


# An input that is kept until it has a result: the id and what the caller gave with it.
Kept: TypeAlias = tuple[Any, ...]
ResultT = TypeVar("ResultT", bound=Result)
ReadyT = TypeVar("ReadyT", bound=Ready)


class StreamState(ABC, Generic[ResultT, ReadyT]):
    """The inputs of a stream that were sent, that have a result, and that may be sent next.

    Args:
        inputs: The inputs of the caller.
        setup: The first request.
        in_input_order: Whether results must come in the order of the inputs.
        timeout_s: The longest wait for the next response, in seconds.
        reconnect_s: How long to go on after a call has ended early, in seconds.
        request_limit: The size limit of requests.

    Attributes:
        method: Returns the method of the call among the stubs.
        ready: The first response of the last call that was accepted; None before the first.
        accepted: Whether the server has accepted the call of now.
        accepted_count: How many calls the server has accepted.
        inputs_ended: Whether all inputs were read.
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
        reconnect_s: float,
        request_limit: RequestLimit,
    ) -> None:
        if isinstance(inputs, str):
            raise TypeError("inputs is one str; give an iterable")
        if not 0 <= reconnect_s < float("inf"):
            raise ValueError(f"reconnect_s is {reconnect_s}; it must be finite and at least 0")
        self.inputs: Final = inputs
        self.setup: Final = setup
        self.timeout_s: Final = timeout_s
        self.reconnect_s: Final = reconnect_s
        self.ready: ReadyT | None = None
        self.accepted = False
        self.accepted_count = 0
        self.inputs_ended = False
        self.input_tokens = 0
        self.input_error: Exception | None = None
        self._request_limit = request_limit
        self._in_input_order = in_input_order
        self._read_count = 0
        # The inputs without a result, by position, as a tuple that starts with the caller's id.
        self._unanswered: dict[str, Kept] = {}
        # Inputs that were not sent and their results, until these are returned; by position.
        self._failed: dict[int, tuple[Kept, ResultT]] = {}
        self._returned: list[Kept] = []  # the inputs of the results that were returned last
        self._undelivered: list[Kept] = []
        self._rejected: list[Any] = []
        self._holds_back = False
        self._waiting_since = time.monotonic()

    @abstractmethod
    def has_room(self) -> bool:
        """Return whether to send `next_message`, or to read another input from the caller."""

    def add(self, item: object) -> Any:
        """Add one input.

        Returns:
            The message to send now; None if there is none yet.

        Raises:
            TypeError: The item has the wrong type.
            ValueError: A text is not valid Unicode.
        """
        try:
            return self._add(item)
        except Exception:
            self._rejected = [item]
            raise

    @abstractmethod
    def next_message(self) -> Any:
        """Return the next message of the inputs that were added; None to read another input."""

    def restart(self) -> None:
        """Begin another call, on which every input without a result is sent again."""
        self.accepted = False
        self._holds_back = False

    def end_inputs(self, error: Exception | None = None) -> Any:
        """Record the end of the inputs.

        Args:
            error: The exception of the caller's iterable, to raise after the last result.

        Returns:
            The last message; None if all inputs were sent.
        """
        self.inputs_ended = True
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
        due = self._answer_step if self.accepted else "ready"
        if step != due:
            raise BadResponseError(f"the stream sent {step} where {due} was due")
        if not self.accepted:
            ready = self._accept(response.ready)
            self._require_same_model(ready)
            self.ready, self.accepted = ready, True
            self.accepted_count += 1
            self._request_limit.lower(ready.limits.max_request_bytes)
            return []
        answered: dict[str, ResultT] = {}
        for result in self._results_of(response):
            if result.id not in self._unanswered or result.id in answered:
                raise BadResponseError("a result has the id of no unanswered input")
            answered[result.id] = self._decode(result, self._unanswered[result.id][0])
        self._returned = []
        results: list[ResultT] = []
        for position, result_of_input in answered.items():
            if self._is_held_back(result_of_input):
                continue
            self._move_failed(results)
            self._returned.append(self._unanswered.pop(position))
            results.append(result_of_input)
        self._move_failed(results)
        return results

    def take_failed(self) -> list[ResultT]:
        """Return the results of inputs that failed without being sent and whose turn it is."""
        self._returned = []
        results: list[ResultT] = []
        self._move_failed(results)
        return results

    def has_failed(self) -> bool:
        """Return whether `take_failed` would return a result."""
        return bool(self._due())

    def begin_wait(self) -> None:
        """Start the wait for a response: the time before is the caller's, not the server's."""
        self._waiting_since = time.monotonic()

    def patience_s(self) -> float:
        """Return the longest further wait, in seconds; at 0 or below the server is overdue."""
        owes = not self.accepted or len(self._unanswered) > self._unsent_count()
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
            if self.has_ended():
                return self.input_error
            failure = self.early_end_error()
        failure.unanswered_ids = tuple(kept[0] for kept in self._kept_inputs())
        return failure

    def has_ended(self) -> bool:
        """Return whether every input has a result."""
        return self.inputs_ended and not self._unanswered

    def early_end_error(self) -> EmbedGrpcError:
        """Return the error to raise when the server ends the call with OK too early."""
        return ConnectionFailedError("the server ended the stream before the last result")

    def note_undelivered(self, count: int) -> None:
        """Note that the caller will not get so many of the results that were returned last."""
        self._undelivered = self._returned[len(self._returned) - count :]

    def remaining(self) -> list[Any]:
        """Return the inputs that were read and whose results the caller did not get, in order.

        An input that was rejected is the last one, as the caller gave it. The others are tuples
        that start with the id, and can be inputs of another stream.
        """
        return [*self._undelivered, *self._kept_inputs(), *self._rejected]

    def with_id(self, item: Any, number: int) -> Any:
        """Return an input that was not read yet as `remaining` returns those that were.

        Args:
            item: The input.
            number: How many were read or skipped since the last that was added.
        """
        return self._with_id(item, str(self._read_count + len(self._rejected) + number))

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
        """Return the number of unanswered inputs that were not sent yet on this call."""

    @abstractmethod
    def _add(self, item: object) -> Any:
        """See `add`."""

    @abstractmethod
    def _with_id(self, item: Any, position: str) -> Any:
        """Return an input as a tuple that starts with its id; anything else as it is."""

    def _require_same_model(self, ready: ReadyT) -> None:
        """Raise ModelChangedError if an earlier call had another model."""
        if self.ready is not None and ready.fingerprint != self.ready.fingerprint:
            raise ModelChangedError(
                "the server has another model since the stream began: its fingerprint is"
                f" {ready.fingerprint} and was {self.ready.fingerprint}",
                metadata={"fingerprint": ready.fingerprint, "was": self.ready.fingerprint},
            )

    def _is_held_back(self, result: ResultT) -> bool:
        """Return whether to drop a result because its input will be sent again.

        A server that stops fails the inputs that it does not run any more. Where the results come
        in the order of the inputs, those after it wait for it.
        """
        if self.reconnect_s and isinstance(result.error, ShuttingDownError):
            self._holds_back = True
            return True
        return self._holds_back and self._in_input_order

    def _kept_inputs(self) -> list[Kept]:
        """Return the inputs without a result, in order."""
        kept = [(int(position), one) for position, one in self._unanswered.items()]
        kept += [(position, one) for position, (one, _) in self._failed.items()]
        kept.sort(key=lambda pair: pair[0])
        return [one for _, one in kept]

    def _move_failed(self, results: list[ResultT]) -> None:
        """Add the results of inputs that failed and whose turn it is."""
        for position in self._due():
            kept, result = self._failed.pop(position)
            self._returned.append(kept)
            results.append(result)

    def _message_bytes_max(self) -> int:
        return min(MESSAGE_BYTES_MAX, self._request_limit.max_bytes)

    def _due(self) -> list[int]:
        """Return the positions of inputs that failed and whose turn it is."""
        if not self._failed or not self._in_input_order or not self._unanswered:
            return sorted(self._failed)
        oldest = int(next(iter(self._unanswered)))
        return sorted(position for position in self._failed if position < oldest)
