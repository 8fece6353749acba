import numpy as np
import pytest
from numpy.typing import NDArray

from embedgrpc.models.graphs.weight_types.rounding import round_columns
from embedgrpc.models.graphs.weight_types.smoothing import Smoothing, choose_smoothing

PLAIN = Smoothing(None, np.empty(0, np.int64), 128)


def _matrix(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def _error(
    smoothing: Smoothing, tokens: NDArray[np.float32], weights: NDArray[np.float32]
) -> float:
    """Return the relative error of a product, computed as the graph does it."""
    divided, multiplied = smoothing.divide(tokens), smoothing.multiply(weights)
    above = divided.max(axis=1) / (255 - smoothing.zero_point)
    scale = np.maximum(above, divided.min(axis=1) / -smoothing.zero_point)[:, None]
    integers = np.rint(divided / scale) + smoothing.zero_point
    assert integers.min() >= 0
    assert integers.max() <= 255
    values, columns = round_columns(multiplied)
    found = (integers - smoothing.zero_point) @ values.astype(np.float64) * scale * columns
    found += tokens[:, smoothing.exact] @ weights[smoothing.exact]
    wanted = tokens @ weights
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_even_channels_need_nothing() -> None:
    """Activations without outliers gain little: the error is that of plain rounding."""
    tokens, weights = _matrix(64, 128, 0), _matrix(128, 256, 1)
    chosen = choose_smoothing([tokens], [weights])
    assert chosen.zero_point == 128
    assert not chosen.exact.size
    assert _error(chosen, tokens, weights) <= _error(PLAIN, tokens, weights) * 1.01


def test_a_large_channel_is_divided() -> None:
    """A channel that is 40 times as large moves a part of its range to the weights."""
    tokens, weights = _matrix(64, 128, 0), _matrix(128, 256, 1)
    tokens[:, 5] *= 40
    chosen = choose_smoothing([tokens], [weights])
    assert chosen.factors is not None
    assert chosen.factors.argmax() == 5
    assert _error(chosen, tokens, weights) < _error(PLAIN, tokens, weights) / 2


def test_large_channels_with_large_weights_stay_exact() -> None:
    """Channels whose weights are large too cannot be divided; where it is cheap they stay."""
    tokens, weights = _matrix(64, 256, 0), _matrix(256, 64, 1)
    tokens[:, [7, 90]] *= 40
    weights[[7, 90]] *= 10
    chosen = choose_smoothing([tokens], [weights])
    assert {7, 90} <= set(chosen.exact.tolist())
    assert chosen.exact.size == 8
    assert _error(chosen, tokens, weights) < _error(PLAIN, tokens, weights) / 2


def test_positive_numbers_get_most_levels() -> None:
    """Activations with few negative numbers, as after GELU, have a low zero point."""
    tokens, weights = np.abs(_matrix(64, 128, 0)), _matrix(128, 256, 1)
    tokens[::2] -= 0.1
    chosen = choose_smoothing([tokens], [weights])
    assert chosen.zero_point == 32
    assert _error(chosen, tokens, weights) < _error(PLAIN, tokens, weights)


def test_several_activations_share_their_weights() -> None:
    """Weights that several activations meet get factors that suit all of these."""
    one, two = _matrix(64, 128, 0), _matrix(64, 128, 2)
    weights = [_matrix(128, 128, 1), _matrix(128, 128, 3)]
    one[:, 5] *= 40
    two[:, 9] *= 40
    chosen = choose_smoothing([one, two], weights)
    assert chosen.factors is not None
    assert set(np.argsort(chosen.factors)[-2:]) == {5, 9}


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_broken_activations_change_nothing(number: float) -> None:
    """Activations that are not finite choose no smoothing."""
    tokens, weights = _matrix(8, 128, 0), _matrix(128, 64, 1)
    tokens[0, 0] = number
    chosen = choose_smoothing([tokens], [weights])
    assert chosen.factors is None
    assert (chosen.exact.size, chosen.zero_point) == (0, 128)
