"""The figures as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from embedgrpc.client.evaluate.measures import Quality


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of vectors in one form.

    Attributes:
        form: The form, such as "int8".
        dimensions: The length of the vectors, in numbers.
        vector_bytes: The bytes that are stored of each vector.
        quality: The means over the queries.
    """

    form: str
    dimensions: int
    vector_bytes: int
    quality: Quality

    def as_json(self) -> dict[str, Any]:
        """Return the row as an object of JSON."""
        return {
            "vectors": self.form,
            "dimensions": self.dimensions,
            "bytes_per_vector": self.vector_bytes,
            "ndcg@10": self.quality.ndcg,
            "recall@100": self.quality.recall,
            "mrr@10": self.quality.mrr,
        }


def show_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table in Markdown; nDCG also as a share of the first row's."""
    first = rows[0].quality.ndcg
    cells = [
        ("vectors", "dimensions", "bytes", "nDCG@10", "of the first", "Recall@100", "MRR@10"),
        *(
            (
                row.form,
                str(row.dimensions),
                f"{row.vector_bytes:,}",
                f"{row.quality.ndcg:.4f}",
                f"{row.quality.ndcg / first:.1%}" if first else "",
                f"{row.quality.recall:.4f}",
                f"{row.quality.mrr:.4f}",
            )
            for row in rows
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, line in enumerate(cells):
        name, *figures = line
        padded = [f"{name:<{widths[0]}}"]
        padded += [f"{one:>{width}}" for one, width in zip(figures, widths[1:], strict=True)]
        yield f"| {' | '.join(padded)} |"
        if number == 0:
            rules = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
            yield f"| {' | '.join(rules)} |"
