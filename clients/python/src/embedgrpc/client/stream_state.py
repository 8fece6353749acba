"""The state of one embedding stream, for both clients. No I/O, no locks.

An input is read from the caller only when the server's window has room for it, so endless inputs
need no more memory than the window. The id of an input on the wire is its position; the caller's
own id stays here. A text that no message has room for fails here, alone; its result waits for its
turn and counts in the window.
"""

import time
from collections.abc import AsyncIterable, Iterable
from typing import Any, Final, Generic, TypeVar, Unpack

import grpc

from embedgrpc.client.decoding import decode_ready, decode_stream_result
from embedgrpc.client.enums import ResultOrder, enum_value
from embedgrpc.client.errors import (
    BadResponseError,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
    InputTooLongError,
)
from embedgrpc.client.options import EmbedOptions, embed_options, valid_text
from embedgrpc.client.request_limit import INPUT_OVERHEAD_BYTES, RequestLimit
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.v1 import embedding_service_pb2 as pb

MESSAGE_BYTES_MAX: Final = 2**20

StreamInputs = Iterable[str] | Iterable[tuple[Any, str]]
AsyncStreamInputs = StreamInputs | AsyncIterable[str] | AsyncIterable[tuple[Any, str]]
InputsT = TypeVar("InputsT", bound=AsyncStreamInputs)


class StreamState(Generic[InputsT]):
    """The inputs of a stream that were sent, that have a result, and that may be sent next.

    The arguments and errors are those of `ClientApi.embed_stream`.
    """

    def __init__(
        self,
        inputs: InputsT,
        *,
        model: str,
        order: ResultOrder,
        batch_size: int,
        timeout_s: float,
        request_limit: RequestLimit,
        **options: Unpack[EmbedOptions],
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if isinstance(inputs, str):
            raise TypeError("inputs is one str; give an iterable of texts")
        self.inputs: Final = inputs
        self.setup: Final = pb.StreamEmbedRequest(
            setup=pb.StreamEmbedSetup(
                model=valid_text("model", model),
                options=embed_options(**options),
                order=enum_value(pb.ResultOrder, order),
            )
        )
        names = {name: str(options.get(name) or "") for name in ("prompt_name", "prompt_text")}
        request_limit.check(self.setup, {"model": model, **names})
        self.timeout_s: Final = timeout_s
        self.ready: StreamReady | None = None
        self.input_tokens = 0
        self.input_error: Exception | None = None
        self._request_limit = request_limit
        self._in_input_order = order == "input"
        self._batch_size = batch_size
        self._inputs_ended = False
        self._read_count = 0
        self._pending = pb.StreamEmbedRequest()  # the next message, not yet full
        self._pending_bytes = 0
        self._caller_ids: dict[str, Any] = {}  # of inputs without a result, by position
        # The results of inputs that were not sent, until they are returned; by position.
        self._failed: dict[int, StreamResult] = {}
        self._waiting_since = time.monotonic()

    def has_room(self) -> bool:
        """Return whether to read another input from the caller.

        A new message waits until the window has room for a full one: many small ones are slow.
        """
        if self.ready is None:
            return False
        room = self.ready.max_in_flight_inputs - len(self._caller_ids) - len(self._failed)
        return room >= (1 if self._pending.batch.inputs else self._batch_size)

    def add(self, item: object) -> pb.StreamEmbedRequest | None:
        """Add one input.

        Args:
            item: A text, or a pair of an id and a text.

        Returns:
            The message to send now; None while the next one has room.

        Raises:
            TypeError: The item is neither.
            ValueError: The text is not valid Unicode.
        """
        position = str(self._read_count)
        field = f"inputs[{position}]"
        if isinstance(item, str):
            caller_id, text = position, item
        elif isinstance(item, tuple) and len(item) == 2:  # noqa: PLR2004 -- a pair
            caller_id, text = item
        else:
            raise TypeError(f"{field} is neither a str nor a pair of an id and a str")
        text_bytes = len(valid_text(field, text).encode())
        self._read_count += 1
        try:
            self._request_limit.check_text(field, text_bytes)
        except InputTooLongError as error:
            self._failed[int(position)] = StreamResult(caller_id, error=error)
            # The results of earlier inputs come first: send them without waiting for later ones.
            return self._take_pending() if self._pending.batch.inputs else None
        input_bytes = text_bytes + INPUT_OVERHEAD_BYTES
        full = None
        if self._pending_bytes + input_bytes > self._message_bytes_max():
            full = self._take_pending() if self._pending.batch.inputs else None
        self._pending.batch.inputs.add(id=position, text=text)
        self._pending_bytes += input_bytes
        self._caller_ids[position] = caller_id
        if len(self._pending.batch.inputs) == self._batch_size:
            full = self._take_pending()
        return full

    def end_inputs(self, error: Exception | None = None) -> pb.StreamEmbedRequest | None:
        """Record the end of the inputs.

        Args:
            error: The exception of the caller's iterable, to raise after the last result.

        Returns:
            The last message; None if all inputs were sent.
        """
        self._inputs_ended = True
        self.input_error = error
        return self._take_pending() if self._pending.batch.inputs else None

    def receive(self, response: pb.StreamEmbedResponse) -> list[StreamResult]:
        """Record one response.

        Returns:
            Its results, with those of inputs that failed before them; none for the first
            response.

        Raises:
            BadResponseError: The response is out of step, or has a result for an unknown input.
        """
        step = response.WhichOneof("step")
        due = "ready" if self.ready is None else "results"
        if step != due:
            raise BadResponseError(f"the stream sent {step} where {due} was due")
        if self.ready is None:
            ready = decode_ready(response.ready)
            # The window has room for two messages: one travels while the server embeds the other.
            window_share = max(1, ready.max_in_flight_inputs // 2)
            self._batch_size = min(self._batch_size, ready.max_batch_inputs, window_share)
            self.ready = ready
            return []
        self.input_tokens += response.results.usage.input_tokens
        answered: dict[str, StreamResult] = {}
        for result in response.results.results:
            if result.id not in self._caller_ids or result.id in answered:
                raise BadResponseError("a result has the id of no unanswered input")
            answered[result.id] = decode_stream_result(result, self._caller_ids[result.id])
        results: list[StreamResult] = []
        for position, result_of_input in answered.items():
            results += self.take_failed()
            del self._caller_ids[position]
            results.append(result_of_input)
        return results + self.take_failed()

    def take_failed(self) -> list[StreamResult]:
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
        owes = self.ready is None or len(self._caller_ids) > len(self._pending.batch.inputs)
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

    def _due(self) -> list[int]:
        """Return the positions of inputs that failed and whose turn it is."""
        if not self._failed or not self._in_input_order or not self._caller_ids:
            return list(self._failed)
        oldest = int(next(iter(self._caller_ids)))
        return [position for position in self._failed if position < oldest]

    def _message_bytes_max(self) -> int:
        return min(MESSAGE_BYTES_MAX, self._request_limit.max_bytes)

    def _take_pending(self) -> pb.StreamEmbedRequest:
        message, self._pending = self._pending, pb.StreamEmbedRequest()
        self._pending_bytes = 0
        self._waiting_since = time.monotonic()
        return message
