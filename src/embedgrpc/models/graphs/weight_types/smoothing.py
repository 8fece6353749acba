"""Chooses how activations are prepared for rounding to uint8, by the error of their products.

A few channels of a transformer's activations are ten times as large as the others. They would set
the scale of their token, and the other channels would keep few levels. Dividing such a channel by
a constant, and multiplying its row of the weights by it, moves a part of the range to the weights.
How large a part is best differs: normalised activations gain, those after GELU lose. These also
have few negative numbers, so that most levels can be above zero. Where a few channels are much
larger than all others, and so are their weights, they stay float32.

Sources: SmoothQuant (https://arxiv.org/abs/2211.10438), LLM.int8()
(https://arxiv.org/abs/2208.07339) for channels that stay float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.graphs.weight_types.rounding import round_columns

# Which part of a channel's range moves to the weights.
_STRENGTHS = (0.5, 0.7, 0.85)
# Factors are powers of 2 to the quarter, so that tiny differences between machines seldom change
# the graph.
_STEPS_PER_OCTAVE = 4
_LARGEST_FACTOR = 16.0
# The integer that stands for 0: in the middle, or low if there are few negative numbers.
_ZERO_POINTS = (128, 32)
# The largest channels stay float32 if the error then falls below this part of it. This takes time
# for each column, so there must not be more of them than channels, and there must be many channels.
_EXACT_CHANNELS = 8
_EXACT_GAIN = 0.67
_CHANNELS_PER_EXACT = 16
# Enough of the columns to estimate an error.
_COLUMNS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How activations become uint8.

    Attributes:
        factors: float32 [channels], which the activations are divided by; None for 1.
        exact: int64 [at most 8], the channels that stay float32.
        zero_point: The integer that stands for 0.
    """

    factors: FloatArray | None
    exact: IntArray
    zero_point: int

    def divide(self, tokens: FloatArray) -> FloatArray:
        """Return the numbers to round of activations, float32 [tokens, channels]."""
        divided = tokens if self.factors is None else tokens / self.factors
        return _without(divided, self.exact, axis=1)

    def multiply(self, matrix: FloatArray) -> FloatArray:
        """Return the numbers to round of weights, float32 [channels, columns]."""
        multiplied = matrix if self.factors is None else matrix * self.factors[:, None]
        return _without(multiplied, self.exact, axis=0)


def choose_smoothing(
    activations: Sequence[FloatArray], matrices: Sequence[FloatArray]
) -> Smoothing:
    """Choose the smoothing with which the products are most exact.

    Args:
        activations: float32 [tokens, channels] each; each meets some of the matrices.
        matrices: float32 [channels, columns] each.
    """
    tokens = np.concatenate(activations)
    weights = np.concatenate([_some_columns(matrix, len(matrices)) for matrix in matrices], axis=1)
    largest = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    factors = [None, *(_find_factors(tokens, largest, strength) for strength in _STRENGTHS)]
    wanted = tokens @ weights

    def choose(exact: IntArray) -> tuple[float, Smoothing]:
        candidates = [
            Smoothing(one, exact, zero_point) for one in factors for zero_point in _ZERO_POINTS
        ]
        errors = [_measure_error(one, tokens, weights, wanted) for one in candidates]
        best = int(np.argmin(errors))
        return errors[best], candidates[best]

    none = np.empty(0, np.int64)
    if not np.isfinite(wanted).all():
        return Smoothing(None, none, _ZERO_POINTS[0])
    error, chosen = choose(none)
    exact = np.sort(np.argsort(-np.abs(tokens).max(axis=0), kind="stable")[:_EXACT_CHANNELS])
    columns = sum(matrix.shape[1] for matrix in matrices)
    if max(columns, _EXACT_CHANNELS * _CHANNELS_PER_EXACT) <= tokens.shape[1]:
        error_exact, chosen_exact = choose(exact.astype(np.int64))
        if error_exact < error * _EXACT_GAIN:
            return chosen_exact
    return chosen


def _measure_error(
    smoothing: Smoothing, tokens: FloatArray, weights: FloatArray, wanted: FloatArray
) -> float:
    """Return the mean over the tokens of the relative squared error of their products.

    Each token counts the same: the largest would hide the others.
    """
    integers, scale = round_columns(smoothing.multiply(weights))
    found = _round_rows(smoothing.divide(tokens), smoothing.zero_point) @ (integers * scale)
    found += tokens[:, smoothing.exact] @ weights[smoothing.exact]
    sizes = np.maximum((wanted**2).sum(axis=1), np.finfo(np.float32).tiny)
    return float((((found - wanted) ** 2).sum(axis=1) / sizes).mean())


def _without(values: FloatArray, channels: IntArray, *, axis: int) -> FloatArray:
    if not channels.size:
        return values
    kept = values.copy()
    kept[channels if axis == 0 else (slice(None), channels)] = 0
    return kept


def _some_columns(matrix: FloatArray, count: int) -> FloatArray:
    step = -(-matrix.shape[1] * count // _COLUMNS_MAX)
    return np.asarray(matrix[:, ::step])


def _find_factors(tokens: FloatArray, largest: FloatArray, strength: float) -> FloatArray:
    """Return what to divide each channel by, float32 [channels].

    Args:
        tokens: float32 [tokens, channels].
        largest: float32 [channels], the largest weight of each.
        strength: The part of the range that moves to the weights.
    """
    tiny = np.finfo(np.float32).tiny
    ranges = np.maximum(np.abs(tokens).max(axis=0), tiny).astype(np.float64)
    factors = ranges**strength / np.maximum(largest, tiny) ** (1 - strength)
    octaves = np.log2(factors / np.median(factors))
    steps = np.rint(octaves * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE
    limit = np.log2(_LARGEST_FACTOR)
    return np.asarray(np.exp2(np.clip(steps, -limit, limit)), np.float32)


def _round_rows(tokens: FloatArray, zero_point: int) -> FloatArray:
    """Round activations as the graph does, and scale them back."""
    above, below = tokens.max(axis=1) / (255 - zero_point), tokens.min(axis=1) / -zero_point
    scale = np.maximum(np.maximum(above, below), np.finfo(np.float32).tiny)[:, None]
    return np.asarray(np.rint(tokens / scale) * scale, np.float32)
