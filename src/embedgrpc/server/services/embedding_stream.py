"""One StreamEmbed call: ids in, results out, in the order that the client asked for."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from embedgrpc.engine.errors import EngineError, InvalidRequestError
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.chunking import BySpans
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.embeddings import EmbedSpec
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.kinds import Representation
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.contract.field_checks import check_count, check_enum, check_id, out_of_order
from embedgrpc.server.contract.limits import describe_limits
from embedgrpc.server.contract.response_sizes import (
    bound_embeddings_size,
    bound_rows_size,
    response_too_large,
)
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.loading.catalog import Catalog, LoadedModel
from embedgrpc.server.rpc.errors import item_error
from embedgrpc.server.services.stream_batch import StreamBatch
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_record import note_failed_inputs, note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import common_pb2, embedding_service_pb2

# Larger messages are slower to send, and later results wait for them.
_MESSAGE_BYTES = 1024 * 1024
# The keys and lengths of a message with one result, and its usage.
_MESSAGE_OVERHEAD_BYTES = 64
# The most bytes that the multi-vectors of one stream's window may need.
_WINDOW_BYTES = 256 * 1024 * 1024
_FLOAT_BYTES = 4
_RESULTS_FIELD, _USAGE_FIELD = 1, 2
_STREAM_RESULTS_FIELD = 2
_ID_FIELD, _EMBEDDING_FIELD, _ERROR_FIELD = 1, 2, 3


@dataclass(frozen=True, slots=True)
class _Result:
    """A `StreamEmbedResult` in wire form, and its share of the usage."""

    id: str
    wire: bytes
    input_tokens: int
    truncated: bool


class _Texts(Sequence[str]):
    """The texts of a message, each decoded when it is read."""

    def __init__(self, inputs: Sequence[embedding_service_pb2.StreamEmbedInput]) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [one.text for one in self._inputs[index]]
        return self._inputs[index].text


class EmbeddingStream:
    """The state of one call."""

    def __init__(self, catalog: Catalog, settings: Settings, requests: Any, context: Any) -> None:
        self._catalog = catalog
        self._settings = settings
        self._context = context
        self.bidi: BidiStream[_Result] = BidiStream(
            context, requests, idle_timeout_s=settings.stream_idle_timeout_s
        )
        self._ids: set[str] = set()
        self._batches: set[StreamBatch] = set()
        self._in_input_order = True
        self._taken = 0
        self._next_position = 0
        self._early: dict[int, _Result] = {}
        self._input_tokens = 0
        self._failed_inputs = 0
        self._response_bytes = 0

    async def run(self) -> None:
        """Serve the call to its end."""
        try:
            await self.bidi.run(self._read, self._pack)
        finally:
            for batch in self._batches:
                batch.cancel()
            # Each holds this stream, too.
            self._batches.clear()
            describe_call(input_tokens=self._input_tokens)
            note_inputs(self._taken)
            note_failed_inputs(self._failed_inputs)

    async def _read(self) -> None:
        requests = self.bidi.receive()
        first = await anext(requests, None)
        if first is None:
            return
        if first.WhichOneof("step") != "setup":
            raise out_of_order("the first message must hold setup")
        call = begin_call(
            self._context,
            WorkClass.BULK,
            self._settings,
            priority=first.setup.options.priority,
            field="setup.options.priority",
        )
        embedder, spec, encoding = await self._set_up(first.setup)
        async for request in requests:
            if request.WhichOneof("step") != "batch":
                raise out_of_order("every message after the first must hold batch")
            await self._take(request.batch, embedder, spec, encoding, call)

    async def _set_up(
        self, setup: embedding_service_pb2.StreamEmbedSetup
    ) -> tuple[Embedder, EmbedSpec, Encoding]:
        served = self._catalog.find(setup.model, field="setup.model")
        loaded, embedder, options = served.embedder(field="setup.model")
        spec, encoding = options.read(setup.options, field="setup.options")
        if isinstance(spec.chunking, BySpans):
            raise InvalidRequestError(
                f"{spec.chunking.field} names the chunks of texts, which Embed takes and a stream"
                " does not",
                field=spec.chunking.field,
            )
        check_enum(embedding_service_pb2.ResultOrder, setup.order, field="setup.order")
        accepted = client_response_bytes(
            self._context, setup.max_response_bytes, field="setup.max_response_bytes"
        )
        limit = min(self._settings.max_response_bytes, accepted)
        self._response_bytes = limit - _MESSAGE_OVERHEAD_BYTES
        self._in_input_order = setup.order != embedding_service_pb2.RESULT_ORDER_COMPLETION
        describe_call(
            operation="embeddings",
            request_model=setup.model or served.id,
            response_model=served.id,
            dimensions=spec.dimensions,
            encoding=encoding.value,
        )
        window = self._window(spec, loaded)
        self.bidi.set_window(window)
        await self.bidi.write_first(
            embedding_service_pb2.StreamEmbedResponse(
                ready=embedding_service_pb2.StreamEmbedReady(
                    model=served.id,
                    revision=loaded.revision,
                    fingerprint=loaded.fingerprint,
                    dimensions=spec.dimensions,
                    max_in_flight_inputs=window,
                    max_batch_inputs=min(self._settings.max_stream_batch_inputs, window),
                    limits=describe_limits(
                        self._settings, max_text_characters=embedder.max_characters
                    ),
                )
            )
        )
        return embedder, spec, encoding

    def _window(self, spec: EmbedSpec, loaded: LoadedModel) -> int:
        """Return the most inputs in flight: fewer when each returns a vector per token."""
        window = self._settings.max_stream_in_flight_inputs
        numbers = spec.token_dimensions
        if Representation.MULTI_VECTOR in spec.representations:
            numbers += loaded.properties.multi_vector_dimensions
        if not numbers:
            return window
        return min(window, max(_WINDOW_BYTES // (spec.max_tokens * numbers * _FLOAT_BYTES), 1))

    async def _take(
        self,
        batch: embedding_service_pb2.StreamEmbedBatch,
        embedder: Embedder,
        spec: EmbedSpec,
        encoding: Encoding,
        call: Call,
    ) -> None:
        """Submit one batch message, as soon as the window has room for it."""
        inputs, size_bytes = batch.inputs, batch.ByteSize()
        check_count(len(inputs), limit=self._settings.max_stream_batch_inputs, field="batch.inputs")
        ids = [one.id for one in inputs]
        for index, identifier in enumerate(ids):
            check_id(identifier, self._ids, field=f"batch.inputs[{index}].id")
            self._ids.add(identifier)
        size = bound_embeddings_size(
            len(inputs),
            spec,
            encoding,
            size_bytes=size_bytes,
            multi_vector_dimensions=embedder.properties.multi_vector_dimensions,
        )
        size = max(size, bound_rows_size(len(inputs), spec, size_bytes=size_bytes))
        await self.bidi.accept(len(inputs), answer_bytes=size + sum(map(len, ids)))
        first = self._taken
        self._taken += len(inputs)
        taken = StreamBatch(
            stream=self,
            embedder=embedder,
            spec=spec,
            encoding=encoding,
            first=first,
            ids=ids,
        )
        running = await embedder.submit(_Texts(inputs), spec, call, taken, size_bytes=size_bytes)
        if taken.missing:
            taken.running = running
            self._batches.add(taken)

    def finished(self, batch: StreamBatch) -> None:
        """Forget a message whose inputs are all answered."""
        self._batches.discard(batch)

    def succeed(
        self, position: int, identifier: str, embedding: bytes, *, tokens: int, truncated: bool
    ) -> None:
        """Send the embedding of an input, in wire form."""
        wire = delimited(_ID_FIELD, identifier.encode()) + delimited(_EMBEDDING_FIELD, embedding)
        if len(wire) > self._response_bytes:
            self.fail(position, identifier, response_too_large(len(wire), self._response_bytes))
            return
        self._send(position, _Result(identifier, wire, tokens, truncated))

    def fail(self, position: int, identifier: str, error: EngineError) -> None:
        """Send the error of an input."""
        self._failed_inputs += 1
        wire = delimited(_ID_FIELD, identifier.encode())
        wire += delimited(_ERROR_FIELD, item_error(error).SerializeToString())
        self._send(position, _Result(identifier, wire, 0, truncated=False))

    def _send(self, position: int, result: _Result) -> None:
        if not self._in_input_order:
            self.bidi.answer(result)
            return
        self._early[position] = result
        while self._next_position in self._early:
            self.bidi.answer(self._early.pop(self._next_position))
            self._next_position += 1

    def _pack(self, outbox: deque[_Result]) -> tuple[Any, int]:
        """Pack the results at the front into one message, in wire form."""
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
