"""What the model answered for some sequences, cut out of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.graphs.outputs import TOKEN_EMBEDDINGS, TOKEN_WEIGHTS

_PER_TOKEN = frozenset({TOKEN_WEIGHTS, TOKEN_EMBEDDINGS})
# To go through so many numbers, or to make an array instead, takes about a millisecond.
_NUMBERS_MAX = 131_072
_NUMBERS_OF_AN_ARRAY = 2048


@dataclass(frozen=True, slots=True)
class OutputRows:
    """The outputs of some sequences of one job, in the same order.

    Attributes:
        by_sequence: For each output with a row a sequence float32 [sequences, width].
        by_token: For each output with a row a token, one array a sequence: float32 [tokens] or
            [tokens, width], without padding.
    """

    by_sequence: Mapping[str, FloatArray]
    by_token: Mapping[str, Sequence[FloatArray]]

    @property
    def are_large(self) -> bool:
        """Whether working on them takes long enough to hold up the event loop."""
        numbers = sum(rows.size for rows in self.by_sequence.values())
        numbers += sum(one.size for ragged in self.by_token.values() for one in ragged)
        ragged_rows = sum(len(ragged) for ragged in self.by_token.values())
        return numbers + _NUMBERS_OF_AN_ARRAY * ragged_rows > _NUMBERS_MAX

    def keep(self, positions: Sequence[int]) -> "OutputRows":
        """Keeps some of the sequences."""
        return OutputRows(
            {name: rows[positions] for name, rows in self.by_sequence.items()},
            {name: [rows[one] for one in positions] for name, rows in self.by_token.items()},
        )


def finite_rows(
    results: Mapping[str, FloatArray], *, lengths: Sequence[int], pad_left: bool
) -> dict[str, NDArray[np.bool_]]:
    """Tells of which sequences of a batch every number is finite, padding left out.

    Args:
        results: By output, float32 [batch, ...].
        lengths: How many tokens each sequence has.
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
    """Cuts the rows of one job out of a batch's results.

    Args:
        results: By output, float32 [batch, ...].
        outputs: Which of them the job wants.
        positions: Where its sequences are in the batch.
        lengths: How many tokens each of these has.
        pad_left: Whether padding comes before the tokens.
    """
    by_sequence = {}
    by_token = {}
    first, count = positions[0], len(positions)
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
    """Puts the rows of a job together as its batches come in.

    Args:
        inputs: How many sequences the job has.
    """

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self._missing = inputs
        self._by_sequence: dict[str, FloatArray] = {}
        self._by_token: dict[str, Sequence[FloatArray]] = {}

    def add(self, indices: Sequence[int], rows: OutputRows) -> None:
        """Takes rows; each index once."""
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

    def whole(self) -> OutputRows | None:
        """Returns all rows once they are there."""
        return None if self._missing else OutputRows(self._by_sequence, self._by_token)


_NOTHING: FloatArray = np.empty(0, np.float32)
