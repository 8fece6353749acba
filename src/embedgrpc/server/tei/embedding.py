"""Embed, EmbedSparse and EmbedAll of tei.v1."""

from collections.abc import Callable
from typing import Any

import numpy as np

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.engine.results.sparse import SparseVector
from embedgrpc.engine.results.vectors import Encoding, encode
from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.services.embed_batch import (
    EmbedBatch,
    EmbeddedBatch,
    bound_response,
    embed_batch,
)
from embedgrpc.server.tei.request import Prepared, TeiAnswer, TeiRequest, read_truncation
from embedgrpc.v1 import embedding_service_pb2

_INT32_MAX = 2**31 - 1
_VALUES_FIELD = 1
# A `SparseValue` and its key: the index as a varint of three bytes, and the number.
_SPARSE_VALUE = np.dtype(
    [("head", "u1", 3), ("index", "u1", 3), ("key", "u1"), ("value", "<f4")], align=False
)
_SPARSE_HEAD = (0x0A, _SPARSE_VALUE.itemsize - 2, 0x08)
_VALUE_KEY = 0x15
# Units of its size in `embedgrpc.v1`, where a term takes 8 bytes.
_SPARSE_COPIES = _SPARSE_VALUE.itemsize / 8


def prepare_dense(request: TeiRequest) -> Prepared:
    """Read an `EmbedRequest`."""
    message = request.message
    if message.dimensions > _INT32_MAX:
        raise InvalidRequestError(
            f"dimensions is {message.dimensions}; the limit is {_INT32_MAX}", field="dimensions"
        )
    options = _options(
        message,
        embedding_service_pb2.REPRESENTATION_DENSE,
        # Other than in `embedgrpc.v1`, the default is not the model's.
        normalize=message.normalize if message.HasField("normalize") else True,
        dimensions=message.dimensions,
    )
    return _prepare(request, options, _pack_dense, copies=1.0)


def prepare_sparse(request: TeiRequest) -> Prepared:
    """Read an `EmbedSparseRequest`."""
    options = _options(request.message, embedding_service_pb2.REPRESENTATION_SPARSE)
    return _prepare(request, options, _pack_sparse, copies=_SPARSE_COPIES)


def prepare_tokens(request: TeiRequest) -> Prepared:
    """Read an `EmbedAllRequest`: the vectors that the model pools, of all tokens."""
    options = _options(
        request.message, embedding_service_pb2.REPRESENTATION_DENSE, token_vectors=True
    )
    return _prepare(request, options, _pack_tokens, copies=1.0)


def _options(
    message: Any, representation: embedding_service_pb2.Representation, **others: Any
) -> embedding_service_pb2.EmbedOptions:
    options = embedding_service_pb2.EmbedOptions(
        representations=[representation], truncation=read_truncation(message), **others
    )
    if message.HasField("prompt_name"):
        options.prompt_name = message.prompt_name
    return options


def _prepare(
    request: TeiRequest,
    options: embedding_service_pb2.EmbedOptions,
    pack: Callable[[EmbeddedBatch], bytes],
    *,
    copies: float,
) -> Prepared:
    text = request.message.inputs
    batch = EmbedBatch(
        request.served,
        [text],
        options,
        size_bytes=request.message.ByteSize(),
        max_response_bytes=request.max_response_bytes,
        response_copies=copies,
        field="inputs",
    )

    async def run() -> TeiAnswer:
        wire, tokens = await embed_batch(
            batch,
            request.call,
            request.settings,
            pack=lambda embedded: (pack(embedded), embedded.input_tokens),
            reserve=request.reserve,
        )
        return TeiAnswer(wire, request.took(characters=len(text), tokens=tokens))

    return Prepared(bound_response(batch), run)


def _pack_dense(embedded: EmbeddedBatch) -> bytes:
    embeddings = embedded.result.embeddings
    assert embeddings is not None and embeddings.vectors is not None  # noqa: S101, PT018 - it was asked for, and the text did not fail
    return delimited(_VALUES_FIELD, encode(embeddings.vectors, Encoding.FLOAT32).data.tobytes())


def _pack_tokens(embedded: EmbeddedBatch) -> bytes:
    embeddings = embedded.result.embeddings
    assert embeddings is not None and embeddings.token_vectors is not None  # noqa: S101, PT018 - they were asked for, and the text did not fail
    rows = encode(embeddings.token_vectors[0].vectors, Encoding.FLOAT32).data
    return b"".join(delimited(1, delimited(_VALUES_FIELD, row.tobytes())) for row in rows)


def _pack_sparse(embedded: EmbeddedBatch) -> bytes:
    embeddings = embedded.result.embeddings
    assert embeddings is not None and embeddings.sparse is not None  # noqa: S101, PT018 - it was asked for, and the text did not fail
    return sparse_wire(embeddings.sparse[0])


def sparse_wire(vector: SparseVector) -> bytes:
    """Write `SparseValue` messages without a message for each.

    All have the same length: a varint may have more bytes than its number needs.
    """
    rows = np.zeros(len(vector.indices), _SPARSE_VALUE)
    indices = vector.indices.astype(np.uint32)
    rows["head"] = _SPARSE_HEAD
    rows["index"][:, 0] = indices & 0x7F | 0x80
    rows["index"][:, 1] = indices >> 7 & 0x7F | 0x80
    rows["index"][:, 2] = indices >> 14
    rows["key"] = _VALUE_KEY
    rows["value"] = vector.values
    return rows.tobytes()
