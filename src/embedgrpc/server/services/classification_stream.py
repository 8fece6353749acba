"""One StreamClassify call: ids in, labels out, in the order that the client asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.tasks.classification import Classifier, ClassifySpec
from embedgrpc.engine.work import Call, Job
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.kinds import Truncation
from embedgrpc.server.calls.bidi_stream import BidiStream
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.contract.classification_wire import LabelWires
from embedgrpc.server.contract.classify_options import read_classify_options
from embedgrpc.server.contract.field_checks import check_count, check_enum, out_of_order
from embedgrpc.server.contract.limits import describe_limits
from embedgrpc.server.contract.response_sizes import FAILURE_BYTES
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.services.message_texts import InputTexts, PairTexts
from embedgrpc.server.services.stream_batch import PackedRows, StreamBatch
from embedgrpc.server.services.stream_results import StreamResult, StreamResults
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import classify_service_pb2, embedding_service_pb2


class ClassificationStream:
    """The state of one call.

    Args:
        catalog: The models.
        settings: The limits.
        requests: Its messages.
        context: The RPC's context.
    """

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
        terms = await self._set_up(first.setup)
        async for request in requests:
            if request.WhichOneof("step") != "batch":
                raise out_of_order("every message after the first must hold batch")
            await self._take(request.batch, terms, call)

    async def _set_up(self, setup: classify_service_pb2.StreamClassifySetup) -> "_Terms":
        settings = self._settings
        served = self._catalog.find(setup.model, field="setup.model")
        loaded, classifier, labels = served.classifier(field="setup.model")
        terms = _Terms(classifier, labels, setup.options, served.default_truncation)
        # What is wrong for a text is wrong for a pair, too, which has more special tokens.
        terms.for_texts  # noqa: B018 - it raises
        check_enum(embedding_service_pb2.ResultOrder, setup.order, field="setup.order")
        accepted = client_response_bytes(
            self._context, setup.max_response_bytes, field="setup.max_response_bytes"
        )
        self._results.limit(min(settings.max_response_bytes, accepted))
        completion = embedding_service_pb2.RESULT_ORDER_COMPLETION
        self._results.in_input_order = setup.order != completion
        describe_call(
            operation="classify", request_model=setup.model or served.id, response_model=served.id
        )
        window = settings.max_stream_in_flight_inputs
        self.bidi.set_window(window)
        await self.bidi.write_first(
            classify_service_pb2.StreamClassifyResponse(
                ready=classify_service_pb2.StreamClassifyReady(
                    model=served.id,
                    revision=loaded.revision,
                    fingerprint=loaded.fingerprint,
                    max_in_flight_inputs=window,
                    max_batch_inputs=min(settings.max_stream_batch_inputs, window),
                    limits=describe_limits(settings, max_text_characters=classifier.max_characters),
                )
            )
        )
        return terms

    async def _take(
        self, batch: classify_service_pb2.StreamClassifyBatch, terms: "_Terms", call: Call
    ) -> None:
        """Submit one batch message, as soon as the window has room for it."""
        inputs, size_bytes = batch.inputs, batch.ByteSize()
        check_count(len(inputs), limit=self._settings.max_stream_batch_inputs, field="batch.inputs")
        for index, one in enumerate(inputs):
            self._results.open(one.id, field=f"batch.inputs[{index}].id")
        entry_bytes = max(terms.labels.bound(terms.top_k), FAILURE_BYTES)
        id_bytes = sum(len(one.id) for one in inputs)
        await self.bidi.accept(len(inputs), answer_bytes=len(inputs) * entry_bytes + id_bytes)
        first = self._taken
        self._taken += len(inputs)
        for are_pairs in (False, True):
            chosen = [
                (position, one)
                for position, one in enumerate(inputs, first)
                if one.HasField("pair") is are_pairs
            ]
            if chosen:
                await self._submit(
                    PairTexts([one.pair for _, one in chosen])
                    if are_pairs
                    else InputTexts([one for _, one in chosen]),
                    [(position, one.id) for position, one in chosen],
                    terms,
                    call,
                    are_pairs=are_pairs,
                    size_bytes=size_bytes * len(chosen) // len(inputs),
                )

    async def _submit(
        self,
        texts: Sequence[str],
        places: Sequence[tuple[int, str]],
        terms: "_Terms",
        call: Call,
        *,
        are_pairs: bool,
        size_bytes: int,
    ) -> None:
        classifier = terms.classifier
        try:
            classifier.check_form(are_pairs=are_pairs)
            spec = terms.for_pairs if are_pairs else terms.for_texts
        except EngineError as error:
            # Inputs of the other form leave the stream unaffected.
            refusal = error.with_traceback(None)
            for place in places:
                self._results.fail(*place, refusal)
            return
        taken = StreamBatch(
            stream=self._results,
            pack=_Packer(terms, spec).pack,
            is_slow=lambda rows: classifier.is_slow(rows.count),
            method="StreamClassify",
            places=places,
        )
        running = await classifier.submit(
            texts, spec, call, taken, are_pairs=are_pairs, size_bytes=size_bytes
        )
        if taken.missing:
            taken.running = running
            self._results.started(taken)


class _Terms:
    """How a stream classifies its inputs."""

    def __init__(
        self,
        classifier: Classifier,
        labels: LabelWires,
        options: classify_service_pb2.ClassifyOptions,
        default_truncation: Truncation,
    ) -> None:
        self.classifier = classifier
        self.labels = labels
        self.top_k = min(options.top_k or len(labels), len(labels))
        self.best_first = options.order != classify_service_pb2.LABEL_ORDER_MODEL
        self._options = options
        self._default_truncation = default_truncation

    @cached_property
    def for_texts(self) -> ClassifySpec:
        """How to classify texts."""
        return self._read(are_pairs=False)

    @cached_property
    def for_pairs(self) -> ClassifySpec:
        """How to classify pairs."""
        return self._read(are_pairs=True)

    def _read(self, *, are_pairs: bool) -> ClassifySpec:
        return read_classify_options(
            self._options,
            self.classifier,
            are_pairs=are_pairs,
            default_truncation=self._default_truncation,
            field="setup.options",
        )


@dataclass(frozen=True, slots=True)
class _Packer:
    """Encodes the classifications of a stream. Thread-safe."""

    terms: _Terms
    spec: ClassifySpec

    def pack(self, job: Job, indices: Sequence[int], rows: OutputRows) -> PackedRows:
        """Encode classifications; see `PackRows`."""
        terms = self.terms
        found = terms.classifier.finish(job, indices, rows, self.spec)
        wires = terms.labels.encode(found, top_k=terms.top_k, best_first=terms.best_first)
        return PackedRows(indices, list(wires), found.token_counts, found.truncated)
