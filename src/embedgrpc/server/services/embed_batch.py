"""Embeds the texts of one unary call, for every protocol that the server speaks."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.embeddings import BatchResult
from embedgrpc.engine.tokenizing.texts import TextOrIds
from embedgrpc.engine.work import Call
from embedgrpc.server.calls.open_call import reserve_response
from embedgrpc.server.contract.chunking_options import check_spans
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.contract.response_sizes import (
    FAILURE_BYTES,
    bound_embeddings_size,
    bound_rows_size,
    check_embeddings_size,
)
from embedgrpc.server.loading.catalog import LoadedModel, ServedModel
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_record import note_failed_inputs, note_inputs
from embedgrpc.server.telemetry.tracing import describe_call
from embedgrpc.v1 import embedding_service_pb2

# A response in the protocol's own form.
Packed = TypeVar("Packed")


@dataclass(frozen=True, slots=True)
class EmbedBatch:
    """The texts of one unary call, and how to embed them.

    Attributes:
        served: The model.
        texts: The texts, or the token ids of some. Each is read only when it is needed.
        options: How to embed them.
        size_bytes: An upper bound of the texts' size in UTF-8.
        max_response_bytes: The largest response that the client accepts.
        request_model: The name of the model in the request; may be empty.
        allow_partial: Whether texts that fail leave the others unaffected.
        response_copies: The size of the response, in units of its protobuf form.
        field: The field of the request that holds the texts, for errors.
        options_field: The field of the request that holds the options, for errors.
    """

    served: ServedModel
    texts: Sequence[TextOrIds]
    options: embedding_service_pb2.EmbedOptions
    size_bytes: int
    max_response_bytes: int
    request_model: str = ""
    allow_partial: bool = False
    response_copies: float = 1.0
    field: str = "texts"
    options_field: str = "options"


@dataclass(frozen=True, slots=True)
class EmbeddedBatch:
    """What became of a batch.

    Attributes:
        served: The model.
        loaded: The same, loaded.
        encoding: The number format that was asked for.
        result: The embeddings and the failures.
    """

    served: ServedModel
    loaded: LoadedModel
    encoding: Encoding
    result: BatchResult

    @property
    def input_tokens(self) -> int:
        """Tokens that the model read."""
        embeddings = self.result.embeddings
        return sum(embeddings.token_counts) if embeddings else 0


def bound_response(batch: EmbedBatch) -> int:
    """Return an upper bound of the response's bytes without a look at the texts.

    Raises:
        EngineError: An option is wrong, or the model cannot do it.
    """
    loaded, _, reader = batch.served.embedder()
    spec, encoding = reader.read(batch.options, field=batch.options_field)
    size = bound_embeddings_size(
        len(batch.texts),
        spec,
        encoding,
        size_bytes=batch.size_bytes,
        multi_vector_dimensions=loaded.properties.multi_vector_dimensions,
    )
    rows_bytes = bound_rows_size(len(batch.texts), spec, size_bytes=batch.size_bytes)
    return max(int(size * batch.response_copies), rows_bytes)


async def embed_batch(
    batch: EmbedBatch,
    call: Call,
    settings: Settings,
    *,
    pack: Callable[[EmbeddedBatch], Packed],
    reserve: Callable[[int], Awaitable[None]] = reserve_response,
) -> Packed:
    """Check a request, embed its texts, and pack the response.

    Args:
        batch: The request.
        call: For whom.
        settings: The server's settings.
        pack: Makes the response. Called off the event loop if that takes long.
        reserve: Waits for room for a response of so many bytes.

    Raises:
        EngineError: A rule is broken, the model cannot do it, or there is no room or time for it.
    """
    served = batch.served
    note_inputs(len(batch.texts))
    loaded, embedder, reader = served.embedder()
    check_count(len(batch.texts), limit=settings.max_inputs, field=batch.field)
    spec, encoding = reader.read(batch.options, field=batch.options_field)
    check_spans(spec.chunking, len(batch.texts))
    limit = min(settings.max_response_bytes, batch.max_response_bytes)
    if batch.allow_partial:
        limit -= FAILURE_BYTES * len(batch.texts)
    answer_bytes = await check_embeddings_size(
        batch.texts,
        spec,
        encoding,
        size_bytes=batch.size_bytes,
        multi_vector_dimensions=loaded.properties.multi_vector_dimensions,
        limit=int(limit / batch.response_copies),
    )
    describe_call(
        operation="embeddings",
        request_model=batch.request_model or served.id,
        response_model=served.id,
        dimensions=spec.dimensions,
        encoding=encoding.value,
    )
    rows_bytes = bound_rows_size(len(batch.texts), spec, size_bytes=batch.size_bytes)
    await reserve(max(int(answer_bytes * batch.response_copies), rows_bytes))

    def finish(result: BatchResult) -> tuple[Packed, int, int]:
        embedded = EmbeddedBatch(served, loaded, encoding, result)
        return pack(embedded), embedded.input_tokens, len(result.failures)

    answer, input_tokens, failed = await embedder.embed(
        batch.texts,
        spec,
        call,
        size_bytes=batch.size_bytes,
        pack=finish,
        field=batch.field,
        partial=batch.allow_partial,
        # A longer form takes longer to write.
        pack_cost=max(batch.response_copies, 1.0),
    )
    note_failed_inputs(failed)
    describe_call(input_tokens=input_tokens)
    return answer
