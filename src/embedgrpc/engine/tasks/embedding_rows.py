"""Which outputs of a graph embeddings are made of, and how: from rows to vectors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.results.sparse import (
    SparseVector,
    from_looked_up_weights,
    from_token_weights,
    from_vocabulary_weights,
)
from embedgrpc.engine.results.vectors import shorten
from embedgrpc.engine.tasks.chunking import ChunkVectors, pool_chunks
from embedgrpc.engine.tasks.embeddings import Embeddings, EmbedSpec
from embedgrpc.engine.tasks.token_places import TokenVectors
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.outputs import (
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_VECTORS,
    TOKEN_WEIGHTS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.kinds import Representation
from embedgrpc.models.tokenizers.token_sequence import TokenSequence


def outputs_of(spec: EmbedSpec, properties: ModelProperties) -> tuple[str, ...]:
    """Return the graph outputs that the representations are made of."""
    outputs = tuple(_output_of(one, spec, properties) for one in spec.representations)
    return (*outputs, TOKEN_VECTORS) if spec.token_dimensions else outputs


def has_no_direction(
    rows: OutputRows, spec: EmbedSpec, properties: ModelProperties
) -> NDArray[np.bool_] | None:
    """Return which dense vectors are zero but need unit length; bool [texts], None for none."""
    dense = _dense(rows, spec, properties)
    # Most vectors begin with another number than 0, which shows that at little cost.
    if dense is None or not spec.normalize or all(dense[:, 0].tolist()):
        return None
    zero = ~dense[:, : spec.dimensions].any(axis=1)
    return np.asarray(zero) if zero.any() else None


def read_rows(
    rows: OutputRows,
    sequences: Sequence[TokenSequence],
    spec: EmbedSpec,
    properties: ModelProperties,
) -> Embeddings:
    """Make embeddings of rows.

    Args:
        rows: A row for each sequence; no dense vector may lack a direction.
        sequences: What the model read.
        spec: How to embed.
        properties: The model's properties.
    """
    dense = _dense(rows, spec, properties)
    return Embeddings(
        vectors=None if dense is None else _shorten(dense, spec, properties),
        sparse=_sparse(rows, sequences, spec, properties),
        multi_vectors=_multi_vectors(rows, sequences, properties),
        token_counts=[len(one.input_ids) for one in sequences],
        truncated=[one.truncated for one in sequences],
        token_vectors=_token_vectors(rows, sequences) if spec.returns_tokens else None,
        chunks=_chunks(rows, sequences, spec) if spec.chunking else None,
    )


def _output_of(representation: Representation, spec: EmbedSpec, properties: ModelProperties) -> str:
    match representation:
        case Representation.DENSE:
            return _dense_output(spec, properties)
        case Representation.SPARSE:
            return VOCABULARY_WEIGHTS if properties.splade else TOKEN_WEIGHTS
        case Representation.MULTI_VECTOR:
            return TOKEN_EMBEDDINGS


def _dense_output(spec: EmbedSpec, properties: ModelProperties) -> str:
    """Vectors before normalization if the model normalizes and the caller does not want it."""
    if properties.normalized and not spec.normalize:
        return POOLED_EMBEDDING
    return SENTENCE_EMBEDDING


def _dense(rows: OutputRows, spec: EmbedSpec, properties: ModelProperties) -> FloatArray | None:
    return rows.by_sequence.get(_dense_output(spec, properties))


def _shorten(dense: FloatArray, spec: EmbedSpec, properties: ModelProperties) -> FloatArray:
    as_is = spec.dimensions == dense.shape[1] and spec.normalize == (
        _dense_output(spec, properties) == SENTENCE_EMBEDDING and properties.normalize
    )
    if as_is:
        return dense
    return shorten(dense, dimensions=spec.dimensions, normalize=spec.normalize)


def _sparse(
    rows: OutputRows,
    sequences: Sequence[TokenSequence],
    spec: EmbedSpec,
    properties: ModelProperties,
) -> list[SparseVector] | None:
    if properties.weight_table is not None:
        looked_up = rows.by_token[TOKEN_WEIGHTS]
        vectors = [
            from_looked_up_weights(weights, one.input_ids)
            for weights, one in zip(looked_up, sequences, strict=True)
        ]
    elif TOKEN_WEIGHTS in rows.by_token:
        vectors = [
            from_token_weights(weights, one.input_ids, properties.unweighted_token_ids)
            for weights, one in zip(rows.by_token[TOKEN_WEIGHTS], sequences, strict=True)
        ]
    elif VOCABULARY_WEIGHTS in rows.by_sequence:
        vectors = [from_vocabulary_weights(row) for row in rows.by_sequence[VOCABULARY_WEIGHTS]]
    else:
        return None
    if not spec.max_sparse_terms:
        return vectors
    return [vector.heaviest(spec.max_sparse_terms) for vector in vectors]


def _multi_vectors(
    rows: OutputRows, sequences: Sequence[TokenSequence], properties: ModelProperties
) -> list[FloatArray] | None:
    if TOKEN_EMBEDDINGS not in rows.by_token:
        return None
    skip = properties.multi_vector_skip_tokens
    return [
        vectors[skip:] if one.compared is None else vectors[one.compared]
        for vectors, one in zip(rows.by_token[TOKEN_EMBEDDINGS], sequences, strict=True)
    ]


def _token_vectors(
    rows: OutputRows, sequences: Sequence[TokenSequence]
) -> list[TokenVectors] | None:
    if TOKEN_VECTORS not in rows.by_token:
        return None
    return [
        TokenVectors(vectors, one.places)
        for vectors, one in zip(rows.by_token[TOKEN_VECTORS], sequences, strict=True)
        if one.places is not None
    ]


def _chunks(
    rows: OutputRows, sequences: Sequence[TokenSequence], spec: EmbedSpec
) -> list[ChunkVectors]:
    return [
        pool_chunks(vectors, one.chunks, dimensions=spec.dimensions, normalize=spec.normalize)
        for vectors, one in zip(rows.by_token[TOKEN_VECTORS], sequences, strict=True)
        if one.chunks is not None
    ]
