import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedgrpc.models.kinds import Pooling
from embedgrpc.models.remote.token_pooling import pool, scale_to_unit

HIDDEN = 6


def made_up(lengths: list[int], *, left: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Make token vectors, and a mask of texts with these lengths."""
    tokens = max(lengths)
    hidden = np.random.default_rng(len(lengths)).normal(size=(len(lengths), tokens, HIDDEN))
    steps = np.arange(tokens)[None, :]
    mask = (steps < np.array(lengths)[:, None]).astype(np.int64)
    return hidden.astype(np.float32), mask[:, ::-1].copy() if left else mask


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    left=st.booleans(),
    pooling=st.sampled_from(Pooling),
)
def test_padding_does_not_count(lengths: list[int], *, left: bool, pooling: Pooling) -> None:
    """A text's vector depends on its real tokens only, as the definition says."""
    hidden, mask = made_up(lengths, left=left)
    found = pool(hidden, mask, [pooling])
    for row, length in enumerate(lengths):
        real = hidden[row][mask[row] == 1].astype(np.float64)
        weights = np.arange(1, length + 1)[:, None]
        expected: dict[Pooling, NDArray[np.float64]] = {
            Pooling.CLS: real[0],
            Pooling.MAX: real.max(axis=0),
            Pooling.MEAN: real.mean(axis=0),
            Pooling.MEAN_SQRT_LEN: real.sum(axis=0) / np.sqrt(length),
            Pooling.WEIGHTED_MEAN: (real * weights).sum(axis=0) / weights.sum(),
            Pooling.LAST_TOKEN: real[-1],
        }
        np.testing.assert_allclose(found[row], expected[pooling], atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, HIDDEN), (2, 7, HIDDEN), (3, 7)])
def test_shapes_must_fit(shape: tuple[int, ...]) -> None:
    """Vectors that do not fit the mask are refused."""
    with pytest.raises(ValueError, match="for a mask"):
        pool(np.zeros(shape, np.float32), np.ones((3, 7), np.int64), [Pooling.MEAN])


def test_poolings_are_concatenated() -> None:
    """Several poolings are concatenated in their order."""
    hidden, mask = made_up([3, 7], left=False)
    both = pool(hidden, mask, [Pooling.CLS, Pooling.MAX])
    np.testing.assert_array_equal(both[:, :HIDDEN], pool(hidden, mask, [Pooling.CLS]))
    np.testing.assert_array_equal(both[:, HIDDEN:], pool(hidden, mask, [Pooling.MAX]))


def test_zeros_stay_zeros() -> None:
    """A zero vector is not divided by its length."""
    found = scale_to_unit(np.array([[0, 0], [3, 4]], np.float32))
    np.testing.assert_allclose(found, np.array([[0, 0], [0.6, 0.8]]), atol=1e-7)
    assert found.dtype == np.float32
