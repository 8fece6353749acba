"""ClassifyService: reads requests, runs them, and writes responses in wire form."""

from collections.abc import Sequence
from typing import Any, overload

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.tasks.classification import Classifications
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.open_call import reserve_response
from embedgrpc.server.contract.classify_options import read_classify_options
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.response_sizes import (
    COMMON_BYTES,
    FAILURE_BYTES,
    check_response_size,
)
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.rpc.errors import item_error
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import classify_service_pb2, classify_service_pb2_grpc, common_pb2

_CLASSIFICATIONS_FIELD = 1


class ClassifyService(classify_service_pb2_grpc.ClassifyServiceServicer):
    """Serves Classify.

    Args:
        catalog: The models.
        settings: The limits.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings

    async def Classify(  # noqa: N802 - the contract's name
        self, request: classify_service_pb2.ClassifyRequest, context: Any
    ) -> bytes:
        """Score every label for each text or pair.

        Returns:
            A `ClassifyResponse` in wire form.
        """
        options = request.options
        call = begin_call(
            context,
            WorkClass.INTERACTIVE,
            self._settings,
            priority=options.priority,
            field="options.priority",
            max_s=self._settings.max_unary_s,
        )
        served = self._catalog.find(request.model)
        loaded, classifier, labels = served.classifier()
        are_pairs = bool(request.pairs)
        if are_pairs and request.texts:
            raise InvalidRequestError(
                f"the request has {len(request.texts)} texts and {len(request.pairs)} pairs; it"
                " must have one of them",
                field="pairs",
            )
        count = len(request.pairs) if are_pairs else len(request.texts)
        check_count(count, limit=self._settings.max_inputs, field="pairs" if are_pairs else "texts")
        spec = read_classify_options(
            options,
            classifier,
            are_pairs=are_pairs,
            default_truncation=served.default_truncation,
            field="options",
        )
        top_k = min(options.top_k or len(labels), len(labels))
        limit = min(
            self._settings.max_response_bytes,
            client_response_bytes(context, request.max_response_bytes),
        )
        entry_bytes = labels.bound(top_k)
        if request.allow_partial:
            entry_bytes = max(entry_bytes, FAILURE_BYTES)
        check_response_size(count * entry_bytes, limit=limit)
        describe_call(
            operation="classify", request_model=request.model or served.id, response_model=served.id
        )
        await reserve_response(count * entry_bytes + COMMON_BYTES)

        def pack(result: Classifications) -> tuple[bytes, int]:
            wires = dict(
                zip(
                    result.indices,
                    labels.encode(
                        result,
                        top_k=top_k,
                        best_first=options.order != classify_service_pb2.LABEL_ORDER_MODEL,
                    ),
                    strict=True,
                )
            )
            for index, error in result.failures.items():
                failed = classify_service_pb2.Classification(error=item_error(error))
                wires[index] = failed.SerializeToString()
            response = classify_service_pb2.ClassifyResponse(
                model=served.id,
                revision=loaded.revision,
                fingerprint=loaded.fingerprint,
                usage=common_pb2.Usage(
                    input_tokens=sum(result.token_counts), truncated_inputs=sum(result.truncated)
                ),
            )
            parts = [delimited(_CLASSIFICATIONS_FIELD, wires[index]) for index in sorted(wires)]
            return b"".join([*parts, response.SerializeToString()]), response.usage.input_tokens

        answer, input_tokens = await classifier.classify(
            _PairTexts(request.pairs) if are_pairs else request.texts,
            spec,
            call,
            are_pairs=are_pairs,
            size_bytes=request.ByteSize(),
            pack=pack,
            partial=request.allow_partial,
        )
        describe_call(input_tokens=input_tokens)
        return answer


class _PairTexts(Sequence[str]):
    """The texts of pairs, first and second in turn, each decoded when it is read."""

    def __init__(self, pairs: Sequence[classify_service_pb2.TextPair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        pair = self._pairs[index // 2]
        return pair.second if index % 2 else pair.first
