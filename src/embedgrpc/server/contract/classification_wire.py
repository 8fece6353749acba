"""Writes classifications in protobuf's wire form, without a message for each label.

Source: protobuf encoding specification; fields of `embedgrpc.v1.Classification` and `LabelScore`.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from embedgrpc.engine.tasks.classification import Classifications
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.server.contract.wire import DELIMITED, FIXED32, VARINT, delimited, tag, varint

_FLOAT_BYTES = 4
# Token count and flag with their keys, and the key and length of the entry.
_ENTRY_BYTES = 24


class LabelWires:
    """The labels of a model, encoded once: all but their scores.

    Args:
        labels: The labels, in the order of the model's logits.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._parts = [_label_parts(label, index) for index, label in enumerate(labels)]
        sizes = [len(head) + _FLOAT_BYTES + len(tail) for head, tail in self._parts]
        self._largest_first = np.cumsum(sorted(sizes, reverse=True))

    def __len__(self) -> int:
        return len(self._parts)

    def bound(self, count: int) -> int:
        """Return an upper bound of the bytes of a classification with so many labels."""
        return int(self._largest_first[min(count, len(self._parts)) - 1]) + _ENTRY_BYTES

    def encode(
        self, classifications: Classifications, *, top_k: int, best_first: bool
    ) -> Iterator[bytes]:
        """Yield a `Classification` for each input that did not fail.

        Args:
            classifications: The scores.
            top_k: The number of labels of each, the best.
            best_first: Whether to sort by score, and not in the model's order.
        """
        chosen = _choose(classifications.scores, top_k, best_first=best_first)
        for row, indices, tokens, truncated in zip(
            classifications.scores.astype("<f4", copy=False),
            chosen.tolist(),
            classifications.token_counts,
            classifications.truncated,
            strict=True,
        ):
            numbers = row.tobytes()
            parts: list[bytes] = []
            for index in indices:
                head, tail = self._parts[index]
                place = index * _FLOAT_BYTES
                parts += (head, numbers[place : place + _FLOAT_BYTES], tail)
            parts.append(tag(2, VARINT) + varint(tokens))
            if truncated:
                parts.append(tag(3, VARINT) + varint(1))
            yield b"".join(parts)


def _choose(scores: FloatArray, top_k: int, *, best_first: bool) -> IntArray:
    """Return the labels of each input: int64 [inputs, labels kept]."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return order if best_first else np.sort(order, axis=1)


def _label_parts(label: str, index: int) -> tuple[bytes, bytes]:
    """Return the bytes of a field `labels` before and after its score."""
    head = delimited(1, label.encode()) + tag(2, FIXED32)
    tail = tag(3, VARINT) + varint(index)
    size = len(head) + _FLOAT_BYTES + len(tail)
    return tag(1, DELIMITED) + varint(size) + head, tail
