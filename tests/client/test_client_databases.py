"""Vectors in the forms of databases, and in short for people."""

import json
from typing import Any, cast

import numpy as np
import pytest

from embedgrpc.client import (
    Client,
    MultiVector,
    SparseVector,
    to_milvus,
    to_pgvector,
    to_qdrant,
)

_SPARSE = SparseVector(
    np.array([0, 6, 29_999]), np.array([0.1, 1e-7, 16777216], np.float32), 30_000
)
_MULTI = MultiVector(np.array([[0.1, -2], [3, 0]], np.float32), None, 2)


def test_qdrant_takes_lists() -> None:
    """Plain values of Python, which JSON takes, too."""
    sparse = cast("dict[str, Any]", to_qdrant(_SPARSE))
    assert sparse["indices"] == [0, 6, 29_999]
    np.testing.assert_array_equal(np.array(sparse["values"], np.float32), _SPARSE.values)
    json.dumps([sparse, to_qdrant(_MULTI)])
    np.testing.assert_array_equal(np.array(to_qdrant(_MULTI), np.float32), _MULTI.values)


def test_pgvector_takes_text() -> None:
    """Its indices count from 1; the numbers read back as they were."""
    text = cast("str", to_pgvector(_SPARSE))
    terms, _, dimensions = text.strip("{").partition("}/")
    read = dict(pair.split(":") for pair in terms.split(","))
    assert (list(read), dimensions) == (["1", "7", "30000"], "30000")
    np.testing.assert_array_equal(np.array(list(read.values()), np.float32), _SPARSE.values)
    assert to_pgvector(_MULTI) == ["[0.1,-2.0]", "[3.0,0.0]"]


def test_milvus_takes_dicts() -> None:
    """A sparse vector by index, a multi-vector as an array of structs."""
    sparse = cast("dict[int, float]", to_milvus(_SPARSE))
    assert list(sparse) == [0, 6, 29_999]
    assert {type(index) for index in sparse} == {int}
    rows = cast("list[dict[str, Any]]", to_milvus(_MULTI, field="token"))
    assert rows[1] == {"token": [3.0, 0.0]}


def test_int8_rows_are_restored_and_signs_refused() -> None:
    """A database would take the raw numbers for the vectors."""
    scaled = MultiVector(np.array([[2, -4]], np.int8), np.array([0.5], np.float32), 2)
    assert to_qdrant(scaled) == [[1, -2]]
    bits = MultiVector(np.array([[255]], np.uint8), None, 8)
    for convert in (to_qdrant, to_pgvector, to_milvus):
        with pytest.raises(ValueError, match="signs, not numbers"):
            convert(bits)
        with pytest.raises(TypeError, match="of type ndarray"):
            convert(cast("Any", np.zeros(3)))


def test_results_are_short_for_people(client: Client) -> None:
    """They tell shapes and models; they show neither numbers nor texts."""
    everything: Any = ["dense", "sparse", "multi_vector"]
    embeddings = client.embed(["a secret", "b"], representations=everything)
    assert repr(embeddings) == (
        "Embeddings(2 x 12 float32, 2 sparse, 2 multi-vectors, model='model-0', 9 tokens)"
    )
    assert repr(embeddings.sparse[0]) == "SparseVector(7 of 1000 terms)"
    assert repr(embeddings.multi_vectors[0]) == "MultiVector(2 x 12 float32)"
    partial = client.embed(["a", ""], allow_partial=True)
    assert repr(partial).startswith("PartialEmbeddings(1 of 2 failed, Embeddings(1 x 12 float32")
    one, failed = client.embed_stream([(7, "a secret"), ("x", "")])
    assert repr(one) == "StreamResult(id=7, 12 float32, 8 tokens)"
    assert repr(failed) == "StreamResult(id='x', error=EmptyInputError('as asked'))"
    ranking = client.rerank("abc", ["xyz", "abc", "ab", "a"])
    assert repr(ranking) == "Ranking(4 documents: 1: 3, 2: 2, 3: 1, ..., model='model-0')"
    (tokens,) = client.tokenize(["secret"])
    assert repr(tokens) == "TokenizedText(7 tokens)"
    (chunked,) = client.embed_stream(["a b"], chunk_tokens=1)
    assert repr(chunked.chunks) == "ChunkVectors(2 x 12 float32)"
