"""What the caller of a bulk run asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of a run.

    Attributes:
        inputs: The input files; "-" alone for standard input.
        input_format: One of `INPUT_FORMATS`; "" to go by the suffix.
        output: A folder, or a file whose suffix tells its format.
        output_format: One of `OUTPUT_FORMATS`; "" to go by the suffix, Parquet in a folder.
        text_column: The column to embed.
        id_column: The column with the ids; "" for the numbers of the rows.
        keep: The columns to keep; None for all.
        unit_rows: The most rows of a unit, which is written and resumed as a whole.
        model: The id or an alias of the model; "" for the server's default.
        embed: The options of `embed_stream`, without those that have their default.
        batch_size: The limit of texts in one message.
        patience_s: The longest time without a result, in seconds.
        failed_max: The limit of rows that fail; None for no limit.
        retry_failed: Whether to embed rows that failed before once more.
    """

    inputs: Sequence[str]
    input_format: str
    output: Path
    output_format: str
    text_column: str
    id_column: str
    keep: Sequence[str] | None
    unit_rows: int
    model: str
    embed: Mapping[str, Any]
    batch_size: int
    patience_s: float
    failed_max: int | None
    retry_failed: bool

    def asked(self) -> dict[str, Any]:
        """Return the options that the output depends on, by name."""
        return {
            "text_column": self.text_column,
            "id_column": self.id_column,
            "keep": "all" if self.keep is None else list(self.keep),
            "unit_rows": self.unit_rows,
            "requested_model": self.model,
            "options": dict(self.embed),
        }
