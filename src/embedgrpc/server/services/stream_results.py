"""The results of a stream whose inputs have ids: in the right order, packed into messages.

The messages of all such streams have the same field numbers: a result has its id and, as its
outcome, what was asked for or an error; a message has results and their usage.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from embedgrpc.engine.errors import EngineError
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.contract.field_checks import check_id
from embedgrpc.server.contract.response_sizes import response_too_large
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.rpc.errors import item_error
from embedgrpc.server.services.stream_batch import StreamBatch
from embedgrpc.server.telemetry.call_record import note_failed_inputs, note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import common_pb2

# Larger messages are slower to send, and later results wait for them.
_MESSAGE_BYTES = 1024 * 1024
# The keys and lengths of a message with one result, and its usage.
_MESSAGE_OVERHEAD_BYTES = 64
_RESULTS_FIELD, _USAGE_FIELD = 1, 2
_STREAM_RESULTS_FIELD = 2
_ID_FIELD, _SUCCESS_FIELD, _ERROR_FIELD = 1, 2, 3


@dataclass(frozen=True, slots=True)
class StreamResult:
    """A result in wire form, and its share of the usage."""

    id: str
    wire: bytes
    input_tokens: int
    truncated: bool


class StreamResults:
    """Sends the result of each input of one call; see `BatchOwner`.

    Args:
        bidi: The stream.

    Attributes:
        in_input_order: Whether results have the order of the inputs.
    """

    def __init__(self, bidi: BidiStream[StreamResult]) -> None:
        self.in_input_order = True
        self._bidi = bidi
        self._ids: set[str] = set()
        self._batches: set[StreamBatch] = set()
        self._next_position = 0
        self._early: dict[int, StreamResult] = {}
        self._response_bytes = 0
        self._inputs = 0
        self._failed_inputs = 0
        self._input_tokens = 0

    def limit(self, response_bytes: int) -> None:
        """Set the most bytes of a message that the client accepts."""
        self._response_bytes = response_bytes - _MESSAGE_OVERHEAD_BYTES

    def open(self, identifier: str, *, field: str) -> None:
        """Note the id of an input that awaits its result.

        Raises:
            InvalidRequestError: It is too long, or another input has it.
        """
        check_id(identifier, self._ids, field=field)
        self._ids.add(identifier)
        self._inputs += 1

    def started(self, batch: StreamBatch) -> None:
        """Keep a job that was started until its inputs are answered."""
        self._batches.add(batch)

    def finished(self, batch: StreamBatch) -> None:
        """Forget a job whose inputs are all answered."""
        self._batches.discard(batch)

    def end(self) -> None:
        """Drop the inputs that have not been run, and record what the call had."""
        for batch in self._batches:
            batch.cancel()
        # Each holds this object, too.
        self._batches.clear()
        describe_call(input_tokens=self._input_tokens)
        note_inputs(self._inputs)
        note_failed_inputs(self._failed_inputs)

    def succeed(
        self, position: int, identifier: str, result: bytes, *, tokens: int, truncated: bool
    ) -> None:
        """Send the result of an input, in wire form."""
        wire = delimited(_ID_FIELD, identifier.encode()) + delimited(_SUCCESS_FIELD, result)
        if len(wire) > self._response_bytes:
            self.fail(position, identifier, response_too_large(len(wire), self._response_bytes))
            return
        self._send(position, StreamResult(identifier, wire, tokens, truncated))

    def fail(self, position: int, identifier: str, error: EngineError) -> None:
        """Send the error of an input."""
        self._failed_inputs += 1
        wire = delimited(_ID_FIELD, identifier.encode())
        wire += delimited(_ERROR_FIELD, item_error(error).SerializeToString())
        self._send(position, StreamResult(identifier, wire, 0, truncated=False))

    def pack(self, outbox: deque[StreamResult]) -> tuple[Any, int]:
        """Pack the results at the front into one message, in wire form.

        Returns:
            The message, and how many results it has.
        """
        parts: list[bytes] = []
        size = tokens = truncated = 0
        budget = min(_MESSAGE_BYTES, self._response_bytes)
        while outbox and (not parts or size + len(outbox[0].wire) < budget):
            result = outbox.popleft()
            parts.append(delimited(_RESULTS_FIELD, result.wire))
            size += len(parts[-1])
            tokens += result.input_tokens
            truncated += result.truncated
            # The client may use the id again once it has read this message.
            self._ids.discard(result.id)
        usage = common_pb2.Usage(input_tokens=tokens, truncated_inputs=truncated)
        self._input_tokens += tokens
        results = len(parts)
        parts.append(delimited(_USAGE_FIELD, usage.SerializeToString()))
        return delimited(_STREAM_RESULTS_FIELD, b"".join(parts)), results

    def _send(self, position: int, result: StreamResult) -> None:
        if not self.in_input_order:
            self._bidi.answer(result)
            return
        self._early[position] = result
        while self._next_position in self._early:
            self._bidi.answer(self._early.pop(self._next_position))
            self._next_position += 1
