"""Rows of a batch's output arrays: cutting them out per job, and collecting them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.graphs.outputs import TOKEN_EMBEDDINGS, TOKEN_VECTORS, TOKEN_WEIGHTS

_PER_TOKEN = frozenset({TOKEN_WEIGHTS, TOKEN_EMBEDDINGS, TOKEN_VECTORS})
# Processing this many numbers, or creating an array instead of them, takes about a millisecond.
_NUMBERS_MAX = 131_072
_NUMBERS_OF_AN_ARRAY = 2048


@dataclass(frozen=True, slots=True)
class OutputRows:
    """The outputs of some sequences of one job, in the same order.

    Attributes:
        by_sequence: Outputs with one row per sequence: float32 [sequences, width].
        by_token: Outputs with one row per token, an array per sequence: float32 [tokens] or
            [tokens, width], without padding.
    """

    by_sequence: Mapping[str, FloatArray]
    by_token: Mapping[str, Sequence[FloatArray]]

    @property
    def count(self) -> int:
        """The number of sequences."""
        return max(map(len, (*self.by_sequence.values(), *self.by_token.values())), default=0)

    def are_large(self, cost: float = 1.0) -> bool:
        """Whether processing them takes too long for the event loop.

        Args:
            cost: The cost of a number, in units of what float32 in binary form takes.
        """
        numbers = sum(rows.size for rows in self.by_sequence.values())
        numbers += sum(one.size for ragged in self.by_token.values() for one in ragged)
        ragged_rows = sum(len(ragged) for ragged in self.by_token.values())
        return cost * (numbers + _NUMBERS_OF_AN_ARRAY * ragged_rows) > _NUMBERS_MAX

    def keep(self, positions: Sequence[int]) -> "OutputRows":
        """Return the rows of some of the sequences."""
        return OutputRows(
            {name: rows[positions] for name, rows in self.by_sequence.items()},
            {name: [rows[one] for one in positions] for name, rows in self.by_token.items()},
        )


def finite_rows(
    results: Mapping[str, FloatArray], *, lengths: Sequence[int], pad_left: bool
) -> dict[str, NDArray[np.bool_]]:
    """Return which sequences of a batch have only finite numbers, padding left out.

    Args:
        results: By output, float32 [batch, ...].
        lengths: Tokens of each sequence.
        pad_left: Whether padding comes before the tokens.

    Returns:
        By output, bool [batch].
    """
    flags: dict[str, NDArray[np.bool_]] = {}
    for name, rows in results.items():
        finite = np.isfinite(rows)
        if name not in _PER_TOKEN:
            flags[name] = np.asarray(finite.reshape(len(rows), -1).all(axis=1))
        elif finite.all():
            flags[name] = np.ones(len(rows), np.bool_)
        else:
            flags[name] = np.array(
                [
                    bool((row[-length:] if pad_left else row[:length]).all())
                    for row, length in zip(finite, lengths, strict=True)
                ],
                np.bool_,
            )
    return flags


def cut_rows(
    results: Mapping[str, FloatArray],
    *,
    outputs: Sequence[str],
    positions: Sequence[int],
    lengths: Sequence[int],
    pad_left: bool,
) -> OutputRows:
    """Cut the rows of one job out of a batch's results.

    Args:
        results: By output, float32 [batch, ...].
        outputs: The outputs that the job wants.
        positions: Where its sequences are in the batch.
        lengths: Tokens of each of them.
        pad_left: Whether padding comes before the tokens.
    """
    by_sequence = {}
    by_token = {}
    first, count = positions[0], len(positions)
    # Consecutive rows are sliced: that takes no copy.
    together = positions[-1] - first == count - 1 and list(positions) == list(
        range(first, first + count)
    )
    for name in outputs:
        if name not in _PER_TOKEN:
            rows = results[name]
            by_sequence[name] = rows[first : first + count] if together else rows[positions]
            continue
        padded = results[name]
        by_token[name] = [
            # A copy: a view would keep the whole batch in memory.
            np.array(row[-length:] if pad_left else row[:length])
            for row, length in zip((padded[one] for one in positions), lengths, strict=True)
        ]
    return OutputRows(by_sequence, by_token)


class RowCollector:
    """Puts the rows of a job in order as its batches finish.

    Args:
        inputs: Number of sequences of the job.
    """

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self._missing = inputs
        self._by_sequence: dict[str, FloatArray] = {}
        self._by_token: dict[str, Sequence[FloatArray]] = {}

    def add(self, indices: Sequence[int], rows: OutputRows) -> None:
        """Add rows; each index once."""
        if len(indices) == self._inputs and list(indices) == list(range(self._inputs)):
            self._by_sequence, self._by_token = dict(rows.by_sequence), dict(rows.by_token)
            self._missing = 0
            return
        for name, arrived in rows.by_sequence.items():
            if name not in self._by_sequence:
                self._by_sequence[name] = np.empty((self._inputs, arrived.shape[1]), np.float32)
            self._by_sequence[name][indices] = arrived
        for name, ragged in rows.by_token.items():
            kept = list(self._by_token.get(name) or [_NOTHING] * self._inputs)
            for index, one in zip(indices, ragged, strict=True):
                kept[index] = one
            self._by_token[name] = kept
        self._missing -= len(indices)

    def skip(self, inputs: int) -> None:
        """Expect no rows for so many inputs, which failed."""
        self._missing -= inputs

    def whole(self) -> OutputRows | None:
        """Return all rows once they are complete, or None."""
        return None if self._missing else OutputRows(self._by_sequence, self._by_token)


_NOTHING: FloatArray = np.empty(0, np.float32)
