"""The state of one stream of embeddings. No I/O, no locks."""

from collections.abc import AsyncIterable, Iterable
from typing import Any

from typing_extensions import Unpack

from embedgrpc.client.decoding import decode_ready, decode_stream_result
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.enums import ResultOrder, enum_value
from embedgrpc.client.errors import InputTooLongError
from embedgrpc.client.inputs import valid_text
from embedgrpc.client.options import EmbedOptions, embed_options, option_texts
from embedgrpc.client.request_limit import INPUT_OVERHEAD_BYTES, RequestLimit
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.client.stream_state import StreamState
from embedgrpc.v1 import embedding_service_pb2 as pb

StreamInputs = Iterable[str] | Iterable[tuple[Any, str]]
AsyncStreamInputs = StreamInputs | AsyncIterable[str] | AsyncIterable[tuple[Any, str]]


class EmbedState(StreamState[StreamResult, StreamReady]):
    """The state of a stream whose inputs are texts, several in a message.

    The arguments and errors are those of `ClientApi.embed_stream`.
    """

    _answer_step = "results"

    def __init__(
        self,
        inputs: AsyncStreamInputs,
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
        setup = pb.StreamEmbedRequest(
            setup=pb.StreamEmbedSetup(
                model=valid_text("model", model),
                options=embed_options(**options),
                order=enum_value(pb.ResultOrder, order),
                max_response_bytes=RESPONSE_BYTES_MAX,
            )
        )
        request_limit.check(setup, {"model": model} | option_texts(options))
        super().__init__(
            inputs,
            setup=setup,
            in_input_order=order == "input",
            timeout_s=timeout_s,
            request_limit=request_limit,
        )
        self.method = lambda stubs: stubs.embedding.StreamEmbed
        self._batch_size = batch_size
        self._pending = pb.StreamEmbedRequest()  # the next message, not yet full
        self._pending_bytes = 0

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
        """Record the end of the inputs; return the last message, None if all were sent."""
        super().end_inputs(error)
        return self._take_pending() if self._pending.batch.inputs else None

    def _accept(self, message: pb.StreamEmbedReady) -> StreamReady:
        ready = decode_ready(message)
        # The window has room for two messages: one travels while the server embeds the other.
        window_share = max(1, ready.max_in_flight_inputs // 2)
        self._batch_size = min(self._batch_size, ready.max_batch_inputs, window_share)
        return ready

    def _results_of(self, response: pb.StreamEmbedResponse) -> Iterable[pb.StreamEmbedResult]:
        self.input_tokens += response.results.usage.input_tokens
        return response.results.results

    def _decode(self, result: pb.StreamEmbedResult, caller_id: Any) -> StreamResult:
        return decode_stream_result(result, caller_id)

    def _unsent_count(self) -> int:
        return len(self._pending.batch.inputs)

    def _take_pending(self) -> pb.StreamEmbedRequest:
        message, self._pending = self._pending, pb.StreamEmbedRequest()
        self._pending_bytes = 0
        self.begin_wait()
        return message
