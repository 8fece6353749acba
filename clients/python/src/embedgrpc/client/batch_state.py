"""The state of a stream whose inputs travel several in a message. No I/O, no locks."""

from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeVar

from embedgrpc.client.enums import ResultOrder
from embedgrpc.client.errors import EmbedGrpcError, InputTooLongError
from embedgrpc.client.request_limit import INPUT_OVERHEAD_BYTES, RequestLimit
from embedgrpc.client.stream_state import Kept, Ready, ResultT, StreamState


class BatchReady(Ready, Protocol):
    """The first response of a stream whose inputs travel in batches."""

    @property
    def max_batch_inputs(self) -> int:
        """The limit of inputs in one message."""


# The most parts of inputs that the server reads of one message.
_MESSAGE_PARTS_MAX: Final = 8192

BatchReadyT = TypeVar("BatchReadyT", bound=BatchReady)


class BatchState(StreamState[ResultT, BatchReadyT]):
    """The inputs of a stream, of which a message holds several.

    Args:
        inputs: The inputs of the caller.
        setup: The first request.
        order: The order of the results.
        batch_size: The limit of inputs in one message.
        timeout_s: The longest wait for the next response, in seconds.
        reconnect_s: How long to go on after a call has ended early, in seconds.
        request_limit: The size limit of requests.

    Raises:
        ValueError: `batch_size` is less than 1, or `reconnect_s` is negative or not finite.
    """

    _answer_step = "results"
    _message: ClassVar[type[Any]]

    def __init__(
        self,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        setup: Any,
        order: ResultOrder,
        batch_size: int,
        timeout_s: float,
        reconnect_s: float,
        request_limit: RequestLimit,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        super().__init__(
            inputs,
            setup=setup,
            in_input_order=order == "input",
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            request_limit=request_limit,
        )
        self._batch_size_max = batch_size
        self._batch_size = batch_size  # what the server allows, too
        self._to_send_again: deque[str] = deque()  # positions
        self._sends_again = False
        self._pending = self._message()  # the next message, not yet full
        self._pending_bytes = self._pending_part_count = 0

    def has_room(self) -> bool:
        """Return whether to send `next_message`, or to read another input from the caller.

        A new message waits until the window has room for a full one: many small ones are slow.
        """
        if self.ready is None or not self.accepted:
            return False
        in_flight_count = len(self._unanswered) - len(self._to_send_again) + len(self._failed)
        room = self.ready.max_in_flight_inputs - in_flight_count
        if self._to_send_again or (self._sends_again and self._pending.batch.inputs):
            return room >= min(self._batch_size, len(self._to_send_again))
        return room >= (1 if self._pending.batch.inputs else self._batch_size)

    def next_message(self) -> Any:
        """Return the next message of inputs that are sent again; None to read another input."""
        if not self._sends_again:
            return None
        while self._to_send_again:
            position = self._to_send_again.popleft()
            if position not in self._unanswered:
                continue  # answered without being sent again, which breaks the contract
            full = self._put(position, self._unanswered[position])
            if full is not None:
                return full
        self._sends_again = False
        return self._take_pending() if self._pending.batch.inputs else None

    def restart(self) -> None:
        """Begin another call, on which every input without a result is sent again."""
        super().restart()
        self._pending = self._message()
        self._pending_bytes = self._pending_part_count = 0
        self._to_send_again = deque(self._unanswered)
        self._sends_again = bool(self._unanswered)

    def _add(self, item: object) -> Any:
        """Add one input; see `StreamState`.

        Returns:
            The message to send now; None while the next one has room.
        """
        position = str(self._read_count)
        kept = self._read(f"inputs[{position}]", position, item)
        self._read_count += 1
        return self._put(position, kept)

    def _put(self, position: str, kept: Kept) -> Any:
        """Put an input into the next message; return the message to send now."""
        field = f"inputs[{position}]"
        content, text_bytes = self._content(kept)
        try:
            self._request_limit.check_text(field, text_bytes)
        except InputTooLongError as error:
            self._unanswered.pop(position, None)
            self._failed[int(position)] = kept, self._failure(kept[0], error)
            # The results of earlier inputs come first: send them without waiting for later ones.
            return self._take_pending() if self._pending.batch.inputs else None
        input_bytes = text_bytes + INPUT_OVERHEAD_BYTES
        part_count = self._part_count(kept)
        full = None
        if (
            self._pending_bytes + input_bytes > self._message_bytes_max()
            or self._pending_part_count + part_count > _MESSAGE_PARTS_MAX
        ):
            full = self._take_pending() if self._pending.batch.inputs else None
        self._pending.batch.inputs.add(id=position, **content)
        self._pending_bytes += input_bytes
        self._pending_part_count += part_count
        self._unanswered[position] = kept
        if len(self._pending.batch.inputs) == self._batch_size:
            full = self._take_pending()
        return full

    def end_inputs(self, error: Exception | None = None) -> Any:
        """Record the end of the inputs; return the last message, None if all were sent."""
        super().end_inputs(error)
        return self._take_pending() if self._pending.batch.inputs else None

    @abstractmethod
    def _read(self, field: str, position: str, item: object) -> Kept:
        """Read one input: its id, or its position, and the input itself.

        Raises:
            TypeError: The item has the wrong type.
            ValueError: A text is not valid Unicode.
        """

    @abstractmethod
    def _content(self, kept: Kept) -> tuple[Mapping[str, Any], int]:
        """Return the fields of an input that `_read` returned, and their bytes."""

    def _part_count(self, kept: Kept) -> int:  # noqa: ARG002 -- other inputs have parts
        """Return how many parts an input names, of which the server reads a limited number."""
        return 0

    @abstractmethod
    def _failure(self, caller_id: Any, error: EmbedGrpcError) -> ResultT:
        """Return the result of an input that was not sent."""

    @abstractmethod
    def _decode_ready(self, message: Any) -> BatchReadyT:
        """Decode the terms of the stream; raise BadResponseError if they allow no input."""

    def _accept(self, message: Any) -> BatchReadyT:
        ready = self._decode_ready(message)
        # The window has room for two messages: one travels while the server works on the other.
        window_share = max(1, ready.max_in_flight_inputs // 2)
        self._batch_size = min(self._batch_size_max, ready.max_batch_inputs, window_share)
        return ready

    def _results_of(self, response: Any) -> Iterable[Any]:
        self.input_tokens += response.results.usage.input_tokens
        results: Iterable[Any] = response.results.results
        return results

    def _unsent_count(self) -> int:
        return len(self._pending.batch.inputs) + len(self._to_send_again)

    def _take_pending(self) -> Any:
        message, self._pending = self._pending, self._message()
        self._pending_bytes = self._pending_part_count = 0
        self.begin_wait()
        return message
