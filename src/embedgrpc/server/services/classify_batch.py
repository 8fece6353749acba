"""Classifies the inputs of one unary call, for every protocol that the server speaks."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from embedgrpc.engine.tasks.classification import Classifications
from embedgrpc.engine.work import Call
from embedgrpc.server.calls.open_call import reserve_response
from embedgrpc.server.contract.classification_wire import LabelWires
from embedgrpc.server.contract.classify_options import read_classify_options
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.response_sizes import (
    COMMON_BYTES,
    FAILURE_BYTES,
    check_response_size,
)
from embedgrpc.server.loading.catalog import LoadedModel, ServedModel
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_record import note_failed_inputs, note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import classify_service_pb2

# A response in the protocol's own form.
Packed = TypeVar("Packed")


@dataclass(frozen=True, slots=True)
class ClassifyBatch:
    """The inputs of one unary call, and how to classify them.

    Attributes:
        served: The model.
        texts: The texts; of pairs, the first and the second text in turn. Each is read only when it
            is needed.
        are_pairs: Whether two texts are one input.
        options: How to classify them.
        size_bytes: An upper bound of the texts' size in UTF-8.
        max_response_bytes: The largest response that the client accepts.
        request_model: The name of the model in the request; may be empty.
        allow_partial: Whether inputs that fail leave the others unaffected.
        response_copies: The size of the response, in units of its protobuf form.
    """

    served: ServedModel
    texts: Sequence[str]
    are_pairs: bool
    options: classify_service_pb2.ClassifyOptions
    size_bytes: int
    max_response_bytes: int
    request_model: str = ""
    allow_partial: bool = False
    response_copies: float = 1.0


@dataclass(frozen=True, slots=True)
class ClassifiedBatch:
    """What became of a batch.

    Attributes:
        served: The model.
        loaded: The same, loaded.
        result: The scores and the failures.
        top_k: How many labels of each input were asked for.
        best_first: Whether they were asked for in the order of their scores.
    """

    served: ServedModel
    loaded: LoadedModel
    labels: LabelWires
    result: Classifications
    top_k: int
    best_first: bool

    @property
    def input_tokens(self) -> int:
        """Tokens that the model read."""
        return sum(self.result.token_counts)

    def wires(self) -> Iterator[bytes]:
        """Yield a `Classification` in wire form for each input that did not fail."""
        return self.labels.encode(self.result, top_k=self.top_k, best_first=self.best_first)


def bound_response(batch: ClassifyBatch) -> int:
    """Return an upper bound of the response's bytes without a look at the texts.

    Raises:
        EngineError: The model has no labels, or cannot be called now.
    """
    _, _, labels = batch.served.classifier()
    count = len(batch.texts) // 2 if batch.are_pairs else len(batch.texts)
    top_k = min(batch.options.top_k or len(labels), len(labels))
    return int((count * labels.bound(top_k) + COMMON_BYTES) * batch.response_copies)


async def classify_batch(
    batch: ClassifyBatch,
    call: Call,
    settings: Settings,
    *,
    pack: Callable[[ClassifiedBatch], Packed],
    reserve: Callable[[int], Awaitable[None]] = reserve_response,
) -> Packed:
    """Check a request, classify its inputs, and pack the response.

    Args:
        batch: The request.
        call: For whom.
        settings: The server's settings.
        pack: Makes the response. Called off the event loop if that takes long.
        reserve: Waits for room for a response of so many bytes.

    Raises:
        EngineError: A rule is broken, the model cannot do it, or there is no room or time for it.
    """
    served, options = batch.served, batch.options
    loaded, classifier, labels = served.classifier()
    count = len(batch.texts) // 2 if batch.are_pairs else len(batch.texts)
    note_inputs(count)
    check_count(count, limit=settings.max_inputs, field="pairs" if batch.are_pairs else "texts")
    spec = read_classify_options(
        options,
        classifier,
        are_pairs=batch.are_pairs,
        default_truncation=served.default_truncation,
        field="options",
    )
    top_k = min(options.top_k or len(labels), len(labels))
    entry_bytes = labels.bound(top_k)
    if batch.allow_partial:
        entry_bytes = max(entry_bytes, FAILURE_BYTES)
    limit = min(settings.max_response_bytes, batch.max_response_bytes)
    check_response_size(count * entry_bytes, limit=int(limit / batch.response_copies))
    describe_call(
        operation="classify",
        request_model=batch.request_model or served.id,
        response_model=served.id,
    )
    await reserve(int((count * entry_bytes + COMMON_BYTES) * batch.response_copies))

    def finish(result: Classifications) -> tuple[Packed, int, int]:
        classified = ClassifiedBatch(
            served,
            loaded,
            labels,
            result,
            top_k=top_k,
            best_first=options.order != classify_service_pb2.LABEL_ORDER_MODEL,
        )
        return pack(classified), classified.input_tokens, len(result.failures)

    answer, input_tokens, failed = await classifier.classify(
        batch.texts,
        spec,
        call,
        are_pairs=batch.are_pairs,
        size_bytes=batch.size_bytes,
        pack=finish,
        partial=batch.allow_partial,
    )
    note_failed_inputs(failed)
    describe_call(input_tokens=input_tokens)
    return answer
