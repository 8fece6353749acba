"""How large a response may be, before it is made."""

from typing import Any

import pytest

from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.embeddings import EmbedSpec
from embedgrpc.models.kinds import Representation, Truncation
from embedgrpc.server.contract.response_sizes import (
    bound_embeddings_size,
    bound_rows_size,
    embeddings_size,
)


def _spec(**changes: Any) -> EmbedSpec:
    values: dict[str, Any] = {
        "prompt": "",
        "dimensions": 384,
        "normalize": True,
        "truncation": Truncation.END,
        "max_tokens": 256,
        "representations": (Representation.DENSE,),
    }
    return EmbedSpec(**(values | changes))


def test_the_size_of_dense_vectors_does_not_depend_on_the_text() -> None:
    """A long text has the vector of a short one."""
    short, long = (
        embeddings_size([text], _spec(), Encoding.FLOAT32, multi_vector_dimensions=0)
        for text in ("a", "a " * 1000)
    )
    assert short == long > 4 * 384


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_bound_covers_every_text(encoding: Encoding) -> None:
    """Without a look at the texts, the bound is at least the size that a look gives."""
    texts = ["a", "a few words", "a " * 500]
    spec = _spec(representations=(Representation.DENSE, Representation.MULTI_VECTOR))
    size = embeddings_size(texts, spec, encoding, multi_vector_dimensions=128)
    bound = bound_embeddings_size(
        len(texts),
        spec,
        encoding,
        size_bytes=sum(map(len, texts)),
        multi_vector_dimensions=128,
    )
    assert bound >= size


@pytest.mark.parametrize("encoding", list(Encoding))
def test_token_vectors_count(encoding: Encoding) -> None:
    """The bounds cover the vectors of all tokens as they are sent, and as the model makes them."""
    texts = ["a", "a few words", "a " * 500]
    size_bytes = sum(map(len, texts))
    plain = _spec()
    assert bound_rows_size(len(texts), plain, size_bytes=size_bytes) == 0
    spec = _spec(token_dimensions=384, returns_tokens=True)
    size, without = (
        embeddings_size(texts, one, encoding, multi_vector_dimensions=0) for one in (spec, plain)
    )
    assert size - without > 256 * (384 // 8 + 20)
    bound = bound_embeddings_size(
        len(texts), spec, encoding, size_bytes=size_bytes, multi_vector_dimensions=0
    )
    assert bound >= size
    assert bound_rows_size(len(texts), spec, size_bytes=size_bytes) >= 4 * 384 * (256 + 4 + 11)
