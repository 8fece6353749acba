"""Reads the table of token vectors that a static model has in place of an encoder.

Two libraries write such models, often into one folder, and read them differently. A folder with the
`config.json` of model2vec is read as model2vec does: a limit of tokens and of characters, and no
unknown tokens. Any other is read as sentence-transformers' `StaticEmbedding` does: the truncation
of `tokenizer.json`, and all tokens.

Source: `StaticModel` of model2vec 0.10, `StaticEmbedding` of sentence-transformers 6.2.
"""

from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.sources.fetching import fetch_table
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.tensors.shards import open_tensor_file
from embedgrpc.models.tensors.weights import Tensors

MODEL2VEC = "model2vec"
# Rows of the table for the ids of tokens, and factors for their vectors. Source: model2vec.
MAPPING_NAME, FACTORS_NAME = "mapping", "weights"
# The names of the table, that of sentence-transformers first.
_NAMES = ("embedding.weight", "embeddings")
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_MAX_LENGTH = 512
_AXES = 2
# Where the reference has no limit. A longer text is refused, not truncated.
_TOKENS_MAX = 131_072


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A table with a vector for each token.

    Attributes:
        file: The file of the table, relative to the folder of the tokenizer.
        name: The name of the table in this file.
        entries: The number of token ids that have a vector.
        dimensions: Values per vector.
        of_model2vec: Whether unknown tokens are dropped, and long texts are cut by characters
            before they are tokenized.
        max_tokens: The longest sequence.
        has_limit: Whether longer texts are truncated. Otherwise they are refused.
        limit: The file and key of that limit, if any.
    """

    file: str
    name: str
    entries: int
    dimensions: int
    of_model2vec: bool
    max_tokens: int
    has_limit: bool
    limit: tuple[JsonObject, str] | None = None


def is_model2vec(root: Path) -> bool:
    """Whether a folder is one that model2vec saved.

    Raises:
        ModelError: Its `config.json` cannot be used.
    """
    config = JsonObject.read_if_present(root / "config.json", root)
    # A model that was not distilled but made of a table has no model_type.
    default = MODEL2VEC if "embedding_dtype" in config.values else ""
    return bool(config.values.get("model_type", default) == MODEL2VEC)


def read_normalize(root: Path) -> bool:
    """Return whether model2vec scales vectors to length 1.

    Raises:
        ModelError: `config.json` cannot be used.
    """
    return JsonObject.read(root / "config.json", root).flag("normalize", default=False)


def read_token_table(files: ModelFiles, folder: Path) -> TokenTable:
    """Read what a static model's files say about its table, which is downloaded if necessary.

    Args:
        files: The model.
        folder: The folder of the table and the tokenizer.

    Raises:
        ModelError: A file is missing or wrong.
    """
    path = fetch_table(files, folder, holds="the table of vectors")
    with open_tensor_file(path) as tensors:
        name = next((one for one in _NAMES if one in tensors.names), None)
        if name is None:
            raise ModelError(f"{path} must hold a table named {' or '.join(_NAMES)}")
        shape, kind = tensors.describe(name)
        of_model2vec = folder == files.folder and is_model2vec(folder)
        # Only model2vec takes the mean of whole numbers.
        kinds = _FLOATS | {"I8"} if of_model2vec else _FLOATS
        if len(shape) != _AXES or 0 in shape or kind not in kinds:
            raise ModelError(
                f"{path}: {name} must be a table of floating-point numbers, not {kind} "
                f"{list(shape)}"
            )
        entries = _count_entries(tensors, shape[0])
    max_tokens, limit = _read_limit(files.folder, folder, of_model2vec=of_model2vec)
    has_limit = 0 < max_tokens <= _TOKENS_MAX
    return TokenTable(
        file=path.name,
        name=name,
        entries=entries,
        dimensions=shape[1],
        of_model2vec=of_model2vec,
        max_tokens=max_tokens if has_limit else _TOKENS_MAX,
        has_limit=has_limit,
        limit=limit,
    )


def _count_entries(tensors: Tensors, rows: int) -> int:
    """Return how many token ids have a vector: those of the mapping, or else all rows."""
    sizes = {}
    for name, kinds in ((MAPPING_NAME, "IU"), (FACTORS_NAME, "F")):
        if name in tensors.names:
            shape, kind = tensors.describe(name)
            if len(shape) != 1 or kind[0] not in kinds:
                raise ModelError(
                    f"{tensors.path}: {name} must be a list of numbers, not {kind} {list(shape)}"
                )
            sizes[name] = shape[0]
    entries = sizes.get(MAPPING_NAME, rows)
    if sizes.get(FACTORS_NAME, entries) != entries:
        raise ModelError(
            f"{tensors.path}: {FACTORS_NAME} has {sizes[FACTORS_NAME]} numbers for {entries} tokens"
        )
    return entries


def _read_limit(
    root: Path, folder: Path, *, of_model2vec: bool
) -> tuple[int, tuple[JsonObject, str] | None]:
    """Return the most tokens of a text, or 0 for no limit, and the file and key that say so."""
    if of_model2vec:
        config = JsonObject.read(root / "config.json", root)
        if "max_length" not in config.values:
            return _MAX_LENGTH, None
        if config.values["max_length"] is None:
            return 0, (config, "max_length")
        return config.size("max_length"), (config, "max_length")
    path = folder / "tokenizer.json"
    if not path.exists():
        return 0, None
    tokenizer = JsonObject.read(path, root)
    truncation = tokenizer.values.get("truncation")
    if truncation is None:
        return 0, None
    return JsonObject(path, tokenizer.table("truncation")).size("max_length"), (
        tokenizer,
        "truncation",
    )
