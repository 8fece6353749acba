"""The state of one embedding stream, shared by both clients. No I/O, no locks.

An input is taken from the caller only when the window of the server has room for it, so an
endless input costs no more memory than the window. Inputs travel under their position; what
the caller knows them by stays here.
"""

import time
from collections.abc import AsyncIterable, Iterable
from typing import Any, Final, Generic, TypeVar, Unpack

import grpc

from embedgrpc.client.enums import ResultOrder, enum_value
from embedgrpc.client.errors import (
    BadResponseError,
    ConnectionFailedError,
    DeadlineExpiredError,
    EmbedGrpcError,
)
from embedgrpc.client.options import EmbedOptions, embed_options, valid_text
from embedgrpc.client.reading import read_ready, read_stream_result
from embedgrpc.client.results import StreamReady, StreamResult
from embedgrpc.v1 import embedding_service_pb2 as pb

BATCH_SIZE: Final = 64
MESSAGE_TEXT_BYTES: Final = 2**20

StreamInputs = Iterable[str] | Iterable[tuple[Any, str]]
AsyncStreamInputs = StreamInputs | AsyncIterable[str] | AsyncIterable[tuple[Any, str]]
InputsT = TypeVar("InputsT", bound=AsyncStreamInputs)


class StreamState(Generic[InputsT]):
    """What was sent on a stream, what was answered, and what may be sent next.

    Args:
        inputs: What to embed: texts, or pairs of an id and a text.
        model: Id of the model; "" for the server's default.
        order: In what order to answer.
        batch_size: The most inputs in one message, at least 1.
        timeout_s: The longest wait for the next answer, in seconds.
        options: How to embed.

    Raises:
        TypeError: An option has the wrong type, or the inputs are one str.
        ValueError: An option is out of its range.
    """

    def __init__(
        self,
        inputs: InputsT,
        *,
        model: str,
        order: ResultOrder,
        batch_size: int,
        timeout_s: float,
        **options: Unpack[EmbedOptions],
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if isinstance(inputs, str):
            raise TypeError("the inputs are one str; give an iterable of them")
        self.inputs: Final = inputs
        self.setup: Final = pb.StreamEmbedRequest(
            setup=pb.StreamEmbedSetup(
                model=valid_text("model", model),
                options=embed_options(**options),
                order=enum_value(pb.ResultOrder, order),
            )
        )
        self.timeout_s: Final = timeout_s
        self.ready: StreamReady | None = None
        self.input_tokens = 0
        self.input_error: Exception | None = None
        self._batch_size = batch_size
        self._inputs_ended = False
        self._taken_count = 0
        self._pending = pb.StreamEmbedRequest()  # the message that is being filled
        self._pending_bytes = 0
        self._caller_ids: dict[str, Any] = {}  # of inputs without an answer, by their position
        self._waiting_since = time.monotonic()

    def has_room(self) -> bool:
        """Tells whether another input may be taken from the caller.

        A message is begun only when it can be filled: a trickle of tiny ones would be slow.
        """
        if self.ready is None:
            return False
        room = self.ready.max_in_flight_inputs - len(self._caller_ids)
        return room >= (1 if self._pending.batch.inputs else self._batch_size)

    def add(self, item: object) -> pb.StreamEmbedRequest | None:
        """Takes one input in.

        Args:
            item: A text, or an id with its text.

        Returns:
            A message to be sent now, if one is full.

        Raises:
            TypeError: The item is neither.
            ValueError: The text is not valid Unicode.
        """
        position = str(self._taken_count)
        field = f"inputs[{position}]"
        if isinstance(item, str):
            caller_id, text = position, item
        elif isinstance(item, tuple) and len(item) == 2:  # noqa: PLR2004 -- a pair
            caller_id, text = item
        else:
            raise TypeError(f"{field} is neither a str nor a pair of id and str")
        text_bytes = len(valid_text(field, text).encode())
        full = None
        if self._pending.batch.inputs and self._pending_bytes + text_bytes > MESSAGE_TEXT_BYTES:
            full = self._take_pending()
        self._pending.batch.inputs.add(id=position, text=text)
        self._pending_bytes += text_bytes
        self._caller_ids[position] = caller_id
        self._taken_count += 1
        if len(self._pending.batch.inputs) == self._batch_size:
            full = self._take_pending()
        return full

    def end_inputs(self, error: Exception | None = None) -> pb.StreamEmbedRequest | None:
        """Notes that there are no more inputs.

        Args:
            error: What the caller's iterable raised; raised again after the last answer.

        Returns:
            The last message, if inputs are left to be sent.
        """
        self._inputs_ended = True
        self.input_error = error
        return self._take_pending() if self._pending.batch.inputs else None

    def receive(self, response: pb.StreamEmbedResponse) -> list[StreamResult]:
        """Takes one answer in.

        Args:
            response: The answer.

        Returns:
            The results in it; none in the first answer.

        Raises:
            BadResponseError: It is not the step that is due, or answers what was not sent.
        """
        step = response.WhichOneof("step")
        due = "ready" if self.ready is None else "results"
        if step != due:
            raise BadResponseError(f"the stream answered with {step} where {due} was due")
        if self.ready is None:
            ready = read_ready(response.ready)
            # Two messages fit into the window: one is on its way while the other is worked on.
            window_share = max(1, ready.max_in_flight_inputs // 2)
            self._batch_size = min(self._batch_size, ready.max_batch_inputs, window_share)
            self.ready = ready
            return []
        self.input_tokens += response.results.usage.input_tokens
        answered: dict[str, StreamResult] = {}
        for result in response.results.results:
            if result.id not in self._caller_ids or result.id in answered:
                raise BadResponseError("a result has an id that no unanswered input has")
            answered[result.id] = read_stream_result(result, self._caller_ids[result.id])
        for position in answered:
            del self._caller_ids[position]
        return list(answered.values())

    def begin_wait(self) -> None:
        """Notes that the caller waits from now on: what it did before is not the server's fault."""
        self._waiting_since = time.monotonic()

    def patience_s(self) -> float:
        """Tells how long to wait before asking again; the server is overdue at 0 or below."""
        owes = self.ready is None or len(self._caller_ids) > len(self._pending.batch.inputs)
        waited_s = time.monotonic() - self._waiting_since if owes else 0.0
        return self.timeout_s - waited_s

    def overdue_error(self) -> EmbedGrpcError:
        """Makes the error to raise when the server is overdue."""
        return DeadlineExpiredError(
            f"the stream had no answer for {self.timeout_s:g} s",
            code=grpc.StatusCode.DEADLINE_EXCEEDED,
            reason="",
        )

    def outcome(self, failure: EmbedGrpcError | None) -> Exception | None:
        """Judges the end of the stream.

        Args:
            failure: What the call ended with; None after OK.

        Returns:
            What to raise: None when every input was answered.
        """
        if failure is None:
            if self._inputs_ended and not self._caller_ids:
                return self.input_error
            failure = ConnectionFailedError("the server ended the stream before its last answer")
        failure.unanswered_ids = tuple(self._caller_ids.values())
        return failure

    def _take_pending(self) -> pb.StreamEmbedRequest:
        message, self._pending = self._pending, pb.StreamEmbedRequest()
        self._pending_bytes = 0
        self._waiting_since = time.monotonic()
        return message
