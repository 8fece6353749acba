"""The rows of a unit with their embeddings: what becomes a part of the output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.bulk.units import Rows, Unit
from embedgrpc.client.result_types import StreamResult
from embedgrpc.client.vectors import MultiVector, SparseVector

_DTYPES: Final[Mapping[str, Any]] = {
    "float16": np.float16,  # what arrives as float32 was float16 on the wire
    "int8": np.int8,
    "ubinary": np.uint8,
}
_BYTE_BITS: Final = 8
ERROR: Final = "error"


@dataclass(frozen=True, slots=True)
class VectorForm:
    """The form of the embeddings in the output.

    Attributes:
        encoding: The encoding of dense vectors and of multi-vectors.
        dimensions: The length of a dense vector, in numbers.
        representations: What the output holds: "dense", "sparse", "multi_vector".
    """

    encoding: str
    dimensions: int
    representations: tuple[str, ...]

    @property
    def dtype(self) -> Any:
        """The dtype of numbers in the output."""
        return np.dtype(_DTYPES.get(self.encoding, np.float32))

    def width_of(self, dimensions: int) -> int:
        """Return the length of a row of so many numbers: ubinary packs eight in a byte."""
        is_bits = self.encoding == "ubinary"
        return -(-dimensions // _BYTE_BITS) if is_bits else dimensions

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the embeddings take."""
        names: list[str] = []
        scaled = self.encoding == "int8"
        if "dense" in self.representations:
            names += ["embedding", "scale"] if scaled else ["embedding"]
        if "sparse" in self.representations:
            names += ["sparse_indices", "sparse_values"]
        if "multi_vector" in self.representations:
            names += ["multi_vector", "multi_vector_scales"] if scaled else ["multi_vector"]
        return (*names, ERROR)


class Part:
    """The rows of a unit, filled with results in any order.

    Args:
        unit: The unit.
        rows: Its rows.
        form: The form of the embeddings.

    Attributes:
        vectors: [rows, width] of the dtype of the form: dense vectors, zeros in rows that failed;
            None if the form has none.
        scales: float32 [rows] for "int8"; 0 in rows that failed.
        sparse: One for each row, None in rows that failed; empty if the form has none.
        multi_vectors: One for each row, None in rows that failed; empty if the form has none.
        errors: The reason of each row that failed, None for the others.
        token_counts: int32 [rows]; 0 in rows that failed.
    """

    def __init__(self, unit: Unit, rows: Rows, form: VectorForm) -> None:
        count = unit.rows
        self.unit = unit
        self.form = form
        self.columns = rows.columns
        self.vectors: NDArray[Any] | None = None
        if "dense" in form.representations:
            self.vectors = np.zeros((count, form.width_of(form.dimensions)), form.dtype)
        self.scales = np.zeros(count, np.float32)
        self.sparse: list[SparseVector | None] = []
        if "sparse" in form.representations:
            self.sparse = [None] * count
        self.multi_vectors: list[MultiVector | None] = []
        if "multi_vector" in form.representations:
            self.multi_vectors = [None] * count
        self.errors: list[str | None] = [None] * count
        self.token_counts = np.zeros(count, np.int32)
        self._missing = count

    @property
    def is_complete(self) -> bool:
        """Whether each row has a result."""
        return not self._missing

    @property
    def failed(self) -> int:
        """The number of rows that failed."""
        return sum(error is not None for error in self.errors)

    def fail(self, row: int, reason: str) -> None:
        """Record that a row has no embedding."""
        self.errors[row] = reason
        self._missing -= 1

    def fill(self, row: int, result: StreamResult) -> None:
        """Record the result of a row."""
        if result.error is not None:
            self.fail(row, str(result.error))
            return
        if self.vectors is not None:
            self.vectors[row] = result.vector
            self.scales[row] = result.scale
        if self.sparse:
            self.sparse[row] = result.sparse
        if self.multi_vectors:
            self.multi_vectors[row] = result.multi_vector
        self.token_counts[row] = result.token_count
        self._missing -= 1
