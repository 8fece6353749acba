"""The state of one embedding stream, shared by both clients. No I/O, no locks.

An input is taken from the caller only when the window of the server has room for it, so an
endless input costs no more memory than the window. Inputs travel under their position; what
the caller knows them by stays here. A text that fits into no message fails here and alone: its
result waits for its turn, within the window too.
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
        request_limit: How large a message may be.
        options: How to embed.

    Raises:
        InputTooLongError: The prompt, or the name of the model, fits into no message.
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
        request_limit: RequestLimit,
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
        self._taken_count = 0
        self._pending = pb.StreamEmbedRequest()  # the message that is being filled
        self._pending_bytes = 0
        self._caller_ids: dict[str, Any] = {}  # of inputs without an answer, by their position
        # Of inputs that were not sent, until they are handed out; by their position.
        self._failed: dict[int, StreamResult] = {}
        self._waiting_since = time.monotonic()

    def has_room(self) -> bool:
        """Tells whether another input may be taken from the caller.

        A message is begun only when it can be filled: a trickle of tiny ones would be slow.
        """
        if self.ready is None:
            return False
        room = self.ready.max_in_flight_inputs - len(self._caller_ids) - len(self._failed)
        return room >= (1 if self._pending.batch.inputs else self._batch_size)

    def add(self, item: object) -> pb.StreamEmbedRequest | None:
        """Takes one input in.

        Args:
            item: A text, or an id with its text.

        Returns:
            A message to be sent now, if one is full or nothing may be added to it.

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
        self._taken_count += 1
        try:
            self._request_limit.check_text(field, text_bytes)
        except InputTooLongError as error:
            self._failed[int(position)] = StreamResult(caller_id, error=error)
            # What came before is answered before: it must not wait for inputs that come after.
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
            The results in it, and those of inputs that failed before them; none in the first
            answer.

        Raises:
            BadResponseError: It is not the step that is due, or answers what was not sent.
        """
        step = response.WhichOneof("step")
        due = "ready" if self.ready is None else "results"
        if step != due:
            raise BadResponseError(f"the stream answered with {step} where {due} was due")
        if self.ready is None:
            ready = decode_ready(response.ready)
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
            answered[result.id] = decode_stream_result(result, self._caller_ids[result.id])
        results: list[StreamResult] = []
        for position, result_of_input in answered.items():
            results += self.take_failed()
            del self._caller_ids[position]
            results.append(result_of_input)
        return results + self.take_failed()

    def take_failed(self) -> list[StreamResult]:
        """Hands out the results of inputs that failed without being sent, if it is their turn."""
        due = self._due()
        return [self._failed.pop(position) for position in due]

    def has_failed(self) -> bool:
        """Tells whether `take_failed` has something to hand out."""
        return bool(self._due())

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
        unanswered = [(int(position), each) for position, each in self._caller_ids.items()]
        unanswered += [(position, result.id) for position, result in self._failed.items()]
        unanswered.sort(key=lambda pair: pair[0])
        failure.unanswered_ids = tuple(caller_id for _, caller_id in unanswered)
        return failure

    def _due(self) -> list[int]:
        """Finds the inputs that failed and whose turn it is."""
        if not self._failed or not self._in_input_order or not self._caller_ids:
            return list(self._failed)
        oldest = int(next(iter(self._caller_ids)))
        return [position for position in self._failed if position < oldest]

    def _message_bytes_max(self) -> int:
        return min(MESSAGE_TEXT_BYTES, self._request_limit.max_bytes)

    def _take_pending(self) -> pb.StreamEmbedRequest:
        message, self._pending = self._pending, pb.StreamEmbedRequest()
        self._pending_bytes = 0
        self._waiting_since = time.monotonic()
        return message
