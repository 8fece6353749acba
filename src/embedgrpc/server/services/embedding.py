"""EmbeddingService: reads requests, runs them, and writes responses in wire form."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from embedgrpc.engine.tasks.embeddings import BatchResult, Embeddings
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.call_metadata import begin_call, client_response_bytes
from embedgrpc.server.calls.open_streams import OpenStreams
from embedgrpc.server.contract.wire import delimited, embedding_wires
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.rpc.errors import item_error
from embedgrpc.server.services.embed_batch import EmbedBatch, EmbeddedBatch, embed_batch
from embedgrpc.server.services.embedding_stream import EmbeddingStream
from embedgrpc.server.settings.settings import Settings
from embedgrpc.v1 import common_pb2, embedding_service_pb2, embedding_service_pb2_grpc

_EMBEDDINGS_FIELD = 1
_USAGE_FIELD = 5
_KNOWN_MODELS = 64


class EmbeddingService(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Serves Embed and StreamEmbed."""

    def __init__(self, catalog: Catalog, settings: Settings, open_streams: OpenStreams) -> None:
        self._catalog = catalog
        self._settings = settings
        self._open_streams = open_streams

    async def Embed(  # noqa: N802 - the contract's name
        self, request: embedding_service_pb2.EmbedRequest, context: Any
    ) -> bytes:
        """Embed a batch.

        Returns:
            An `EmbedResponse` in wire form.
        """
        call = begin_call(
            context,
            WorkClass.INTERACTIVE,
            self._settings,
            priority=request.options.priority,
            field="options.priority",
            max_s=self._settings.max_unary_s,
        )
        batch = EmbedBatch(
            self._catalog.find(request.model),
            request.texts,
            request.options,
            size_bytes=request.ByteSize(),
            max_response_bytes=client_response_bytes(context, request.max_response_bytes),
            request_model=request.model,
            allow_partial=request.allow_partial,
        )
        return await embed_batch(batch, call, self._settings, pack=_pack)

    async def StreamEmbed(  # noqa: N802 - the contract's name
        self, request_iterator: Any, context: Any
    ) -> None:
        """Embed a stream of any length; a bad text fails alone."""
        stream = EmbeddingStream(self._catalog, self._settings, request_iterator, context)
        with self._open_streams.watch(stream.bidi):
            await stream.run()


def _pack(embedded: EmbeddedBatch) -> bytes:
    """Return an `EmbedResponse` in wire form."""
    loaded, result = embedded.loaded, embedded.result
    model = _model_wire(embedded.served.id, loaded.revision, loaded.fingerprint)
    usage = b""
    wires: Sequence[bytes] = ()
    if result.embeddings is not None:
        usage = delimited(_USAGE_FIELD, usage_of(result.embeddings).SerializeToString())
        wires = embedding_wires(
            result.embeddings,
            encoding=embedded.encoding,
            sparse_dimensions=loaded.properties.sparse_dimensions,
        )
    if result.failures:
        wires = _with_failures(wires, result)
    parts = [delimited(_EMBEDDINGS_FIELD, wire) for wire in wires]
    return b"".join([*parts, model, usage])


@lru_cache(_KNOWN_MODELS)
def _model_wire(model: str, revision: str, fingerprint: str) -> bytes:
    """Return the fields of an `EmbedResponse` that say which model answered, in wire form."""
    return embedding_service_pb2.EmbedResponse(
        model=model, revision=revision, fingerprint=fingerprint
    ).SerializeToString()


def _with_failures(wires: Sequence[bytes], result: BatchResult) -> list[bytes]:
    """Return one `Embedding` per text, in wire form: for those that failed, the error."""
    by_index = dict(zip(result.indices, wires, strict=True))
    for index, error in result.failures.items():
        embedding = embedding_service_pb2.Embedding(error=item_error(error))
        by_index[index] = embedding.SerializeToString()
    return [by_index[index] for index in sorted(by_index)]


def usage_of(embeddings: Embeddings) -> common_pb2.Usage:
    """Return the tokens and the truncated inputs of a response."""
    return common_pb2.Usage(
        input_tokens=sum(embeddings.token_counts), truncated_inputs=sum(embeddings.truncated)
    )
