"""One StreamEmbed call: ids in, results out, in the order that the client asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.chunking import BySpans
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.embeddings import EmbedSpec
from embedgrpc.engine.work import Call, Job
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.kinds import Representation
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.contract.field_checks import check_count, check_enum, out_of_order
from embedgrpc.server.contract.input_spans import (
    check_setup_spans,
    find_bad_spans,
    spans_of_inputs,
)
from embedgrpc.server.contract.limits import describe_limits
from embedgrpc.server.contract.response_sizes import bound_embeddings_size, bound_rows_size
from embedgrpc.server.contract.wire import embedding_wires
from embedgrpc.server.loading.catalog import Catalog, LoadedModel
from embedgrpc.server.services.message_texts import InputTexts
from embedgrpc.server.services.stream_batch import PackedRows, StreamBatch
from embedgrpc.server.services.stream_results import StreamResult, StreamResults
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import embedding_service_pb2

# The most bytes that the multi-vectors of one stream's window may need.
_WINDOW_BYTES = 256 * 1024 * 1024
_FLOAT_BYTES = 4


class EmbeddingStream:
    """The state of one call."""

    def __init__(self, catalog: Catalog, settings: Settings, requests: Any, context: Any) -> None:
        self._catalog = catalog
        self._settings = settings
        self._context = context
        self.bidi: BidiStream[StreamResult] = BidiStream(
            context, requests, idle_timeout_s=settings.stream_idle_timeout_s
        )
        self._results = StreamResults(self.bidi)
        self._taken = 0

    async def run(self) -> None:
        """Serve the call to its end."""
        try:
            await self.bidi.run(self._read, self._results.pack)
        finally:
            self._results.end()

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
        check_setup_spans(spec.chunking)
        check_enum(embedding_service_pb2.ResultOrder, setup.order, field="setup.order")
        accepted = client_response_bytes(
            self._context, setup.max_response_bytes, field="setup.max_response_bytes"
        )
        self._results.limit(min(self._settings.max_response_bytes, accepted))
        completion = embedding_service_pb2.RESULT_ORDER_COMPLETION
        self._results.in_input_order = setup.order != completion
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
        inputs, size_bytes = list(batch.inputs), batch.ByteSize()
        check_count(len(inputs), limit=self._settings.max_stream_batch_inputs, field="batch.inputs")
        for index, one in enumerate(inputs):
            self._results.open(one.id, field=f"batch.inputs[{index}].id")
        bad = find_bad_spans(inputs, spec.chunking)
        good = [(position, one) for position, one in enumerate(inputs) if position not in bad]
        chosen = [one for _, one in good]
        if isinstance(spec.chunking, BySpans):
            spec = replace(spec, chunking=spans_of_inputs(chosen))
        size = bound_embeddings_size(
            len(inputs),
            spec,
            encoding,
            size_bytes=size_bytes,
            multi_vector_dimensions=embedder.properties.multi_vector_dimensions,
        )
        size = max(size, bound_rows_size(len(inputs), spec, size_bytes=size_bytes))
        id_bytes = sum(len(one.id) for one in inputs)
        await self.bidi.accept(len(inputs), answer_bytes=size + id_bytes)
        first = self._taken
        self._taken += len(inputs)
        for index, error in bad.items():
            self._results.fail(first + index, inputs[index].id, error)
        if not chosen:
            return
        taken = StreamBatch(
            stream=self._results,
            pack=_Packer(embedder, spec, encoding).pack,
            is_slow=lambda rows: spec.chunking is not None or rows.are_large(),
            method="StreamEmbed",
            places=[(first + index, one.id) for index, one in good],
        )
        running = await embedder.submit(
            InputTexts(chosen), spec, call, taken, size_bytes=size_bytes
        )
        if taken.missing:
            taken.running = running
            self._results.started(taken)


@dataclass(frozen=True, slots=True)
class _Packer:
    """Encodes the embeddings of a stream. Thread-safe."""

    embedder: Embedder
    spec: EmbedSpec
    encoding: Encoding

    def pack(self, job: Job, indices: Sequence[int], rows: OutputRows) -> PackedRows:
        """Encode embeddings; see `PackRows`."""
        zero = self.embedder.has_no_direction(rows, self.spec)
        without: list[int] = []
        if zero is not None:
            without = [indices[row] for row in zero.nonzero()[0].tolist()]
            kept = (~zero).nonzero()[0].tolist()
            indices, rows = [indices[row] for row in kept], rows.keep(kept)
        if not indices:
            return PackedRows((), (), (), (), without)
        embeddings = self.embedder.finish(job, indices, rows, self.spec)
        wires = embedding_wires(
            embeddings,
            encoding=self.encoding,
            sparse_dimensions=self.embedder.properties.sparse_dimensions,
        )
        return PackedRows(indices, wires, embeddings.token_counts, embeddings.truncated, without)
