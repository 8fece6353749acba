"""Reads how a static model limits its texts, and checks the settings for models of a table."""

from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.limits import TokenLimit
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.token_table import TokenTable
from embedgrpc.models.folder.truncation_side import find_truncation
from embedgrpc.models.kinds import Truncation, WeightType


def check_table_overrides(folder: Path, modules: Modules, overrides: ModelOverrides) -> None:
    """Refuse settings that a model without an encoder cannot follow.

    Raises:
        ModelError: One is set.
    """
    if modules.table is None and modules.weight_table is None:
        return
    holds = "vectors" if modules.table is not None else "weights"
    for name in ("pooling", "file", "output", "task_id"):
        if getattr(overrides, name) not in (None, "", ()):
            raise ModelError(
                f"{folder}: {name} is set, but the model is a table of {holds} without an encoder"
            )
    if modules.weight_table is not None and overrides.weight_type is not WeightType.FLOAT32:
        raise ModelError(
            f"{folder}: weight_type is set to {overrides.weight_type}, but a table with one weight "
            "per token stays in float32"
        )


def find_table_limit(
    table: TokenTable, config: JsonObject, overrides: ModelOverrides
) -> TokenLimit:
    """Return the longest sequence that a static model accepts.

    Raises:
        ModelError: The configuration sets no positive number.
    """
    if overrides.max_tokens is not None:
        if overrides.max_tokens < 1:
            raise ModelError(f"{config.path.parent}: max_tokens that is set must be at least 1")
        return TokenLimit(overrides.max_tokens, config, "")
    return TokenLimit(table.max_tokens, *(table.limit or (config, "")))


def find_table_truncation(
    folder: Path, root: Path, table: TokenTable, overrides: ModelOverrides
) -> tuple[Truncation, JsonObject, str]:
    """Return the end that is cut, and the file and key that say so.

    A text is refused, not cut, if it exceeds a limit that the reference does not have.

    Raises:
        ModelError: `tokenizer.json` cannot be used.
    """
    nothing = JsonObject(folder / "tokenizer_config.json", {})
    if not table.has_limit and overrides.max_tokens is None:
        return Truncation.NONE, nothing, ""
    if table.of_model2vec:
        return Truncation.END, nothing, ""
    return find_truncation(folder, root, nothing)
