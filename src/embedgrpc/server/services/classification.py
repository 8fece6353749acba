"""ClassifyService: reads requests, runs them, and writes responses in wire form."""

from typing import Any

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.rpc.errors import item_error
from embedgrpc.server.services.classification_stream import ClassificationStream
from embedgrpc.server.services.classify_batch import (
    ClassifiedBatch,
    ClassifyBatch,
    classify_batch,
)
from embedgrpc.server.services.message_texts import PairTexts
from embedgrpc.server.settings.settings import Settings
from embedgrpc.v1 import classify_service_pb2, classify_service_pb2_grpc, common_pb2

_CLASSIFICATIONS_FIELD = 1


class ClassifyService(classify_service_pb2_grpc.ClassifyServiceServicer):
    """Serves Classify and StreamClassify.

    Args:
        catalog: The models.
        settings: The limits.
        open_streams: Receives the streams, which must end before the server stops.
    """

    def __init__(self, catalog: Catalog, settings: Settings, open_streams: OpenStreams) -> None:
        self._catalog = catalog
        self._settings = settings
        self._open_streams = open_streams

    async def Classify(  # noqa: N802 - the contract's name
        self, request: classify_service_pb2.ClassifyRequest, context: Any
    ) -> bytes:
        """Score every label for each text or pair.

        Returns:
            A `ClassifyResponse` in wire form.
        """
        call = begin_call(
            context,
            WorkClass.INTERACTIVE,
            self._settings,
            priority=request.options.priority,
            field="options.priority",
            max_s=self._settings.max_unary_s,
        )
        served = self._catalog.find(request.model)
        if request.pairs and request.texts:
            raise InvalidRequestError(
                f"the request has {len(request.texts)} texts and {len(request.pairs)} pairs; it"
                " must have one of them",
                field="pairs",
            )
        batch = ClassifyBatch(
            served=served,
            texts=PairTexts(request.pairs) if request.pairs else request.texts,
            are_pairs=bool(request.pairs),
            options=request.options,
            size_bytes=request.ByteSize(),
            max_response_bytes=client_response_bytes(context, request.max_response_bytes),
            request_model=request.model,
            allow_partial=request.allow_partial,
        )
        return await classify_batch(batch, call, self._settings, pack=_pack)

    async def StreamClassify(  # noqa: N802 - the contract's name
        self, request_iterator: Any, context: Any
    ) -> None:
        """Classify a stream of any length; an input that fails does not end it."""
        stream = ClassificationStream(self._catalog, self._settings, request_iterator, context)
        with self._open_streams.watch(stream.bidi):
            await stream.run()


def _pack(batch: ClassifiedBatch) -> bytes:
    """Return a `ClassifyResponse` in wire form."""
    result = batch.result
    wires = dict(zip(result.indices, batch.wires(), strict=True))
    for index, error in result.failures.items():
        failed = classify_service_pb2.Classification(error=item_error(error))
        wires[index] = failed.SerializeToString()
    response = classify_service_pb2.ClassifyResponse(
        model=batch.served.id,
        revision=batch.loaded.revision,
        fingerprint=batch.loaded.fingerprint,
        usage=common_pb2.Usage(
            input_tokens=batch.input_tokens, truncated_inputs=sum(result.truncated)
        ),
    )
    parts = [delimited(_CLASSIFICATIONS_FIELD, wires[index]) for index in sorted(wires)]
    return b"".join([*parts, response.SerializeToString()])
