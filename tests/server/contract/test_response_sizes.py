"""How large a response may be, before it is made."""

from typing import Any

import pytest

from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.embeddings import EmbedSpec
from embedgrpc.models.kinds import Representation, Truncation
from embedgrpc.server.contract.response_sizes import bound_embeddings_size, embeddings_size


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
