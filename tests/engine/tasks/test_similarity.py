import numpy as np
import pytest

from embedgrpc.engine.results.sparse import (
    SparseVector,
    from_token_weights,
    from_vocabulary_weights,
)
from embedgrpc.engine.tasks.embeddings import Embeddings
from embedgrpc.engine.tasks.similarity import _SCORES, can_rank, method_for
from embedgrpc.models.kinds import Representation, RerankMethod


def sparse(**weights: float) -> SparseVector:
    """Return a sparse vector; `t7=0.5` is weight 0.5 of term 7."""
    terms = sorted((int(name[1:]), weight) for name, weight in weights.items())
    return SparseVector(
        np.array([term for term, _ in terms], np.uint32),
        np.array([weight for _, weight in terms], np.float32),
    )


# A query and two documents with scores that are easy to compute by hand.
EMBEDDINGS = Embeddings(
    vectors=np.array([[0.6, 0.8], [1, 0], [0, 1]], np.float32),
    sparse=[sparse(t1=0.5, t2=0.25), sparse(t2=1.0, t3=1.0), sparse(t1=1.0, t2=2.0)],
    multi_vectors=[
        np.array([[1, 0], [0, 1]], np.float32),
        np.array([[0.5, 0.25]], np.float32),
        np.array([[0, 1], [0.75, 0], [0.25, 0.25]], np.float32),
    ],
    token_counts=[2, 1, 3],
    truncated=[False] * 3,
)


@pytest.mark.parametrize(
    ("method", "scores"),
    [
        (RerankMethod.SIMILARITY, [0.6, 0.8]),
        (RerankMethod.LATE_INTERACTION, [0.75, 1.75]),
        # 0.4 of the cosine, 0.2 of the common terms, 0.4 of the late interaction by query token.
        (RerankMethod.HYBRID, [0.24 + 0.05 + 0.15, 0.32 + 0.2 + 0.35]),
    ],
)
def test_scores_are_those_of_the_method(method: RerankMethod, scores: list[float]) -> None:
    """Each method weighs what it compares as its source does."""
    assert _SCORES[method](EMBEDDINGS).tolist() == pytest.approx(scores, rel=1e-6)


def test_the_richest_method_is_taken() -> None:
    """A model ranks by all its representations; without any vector it cannot."""
    dense, lexical, multi = Representation
    assert method_for([multi, lexical, dense]) is RerankMethod.HYBRID
    assert method_for([dense, multi]) is RerankMethod.SIMILARITY
    assert method_for([multi]) is RerankMethod.LATE_INTERACTION
    assert method_for([lexical]) is RerankMethod.SIMILARITY
    assert method_for([]) is None
    assert not can_rank(RerankMethod.HYBRID, [dense, multi])
    assert not can_rank(RerankMethod.CROSS_ENCODER, list(Representation))


def test_terms_without_weight_are_no_terms() -> None:
    """Each term gets its largest weight; zeros and excluded terms are left out."""
    ids = np.array([5, 9, 5, 2, 7], np.int64)
    weights = np.array([0.5, 0.0, 0.75, 0.25, 0.125], np.float32)
    vector = from_token_weights(weights, ids, {2})
    assert vector.indices.tolist() == [5, 7]
    assert vector.values.tolist() == [0.75, 0.125]
    whole = from_vocabulary_weights(np.array([0, 0.5, 0, 0.25], np.float32))
    assert (whole.indices.tolist(), whole.values.tolist()) == ([1, 3], [0.5, 0.25])
