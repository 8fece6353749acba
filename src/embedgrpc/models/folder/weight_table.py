"""Reads the table of token weights that makes the queries of inference-free SPLADE.

A text's vector holds the weight of each token that occurs in it, however often. The weights are a
tensor, or a JSON file that lists the weight of each token, as `idf.json` does.

Source: `SparseStaticEmbedding` of sentence-transformers 6.2.
"""

from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import check_file, find_member
from embedgrpc.models.folder.tokenizer_file import read_tokenizer
from embedgrpc.models.sources.fetching import fetch_table
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.tensors.shards import open_tensor_file

_NAME = "weight"
_PATH = "path"
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True, slots=True)
class WeightTable:
    """A table with a weight for each token.

    Attributes:
        folder: The folder of the table: that of the tokenizer, or the model's.
        file: The file of the table, relative to this folder.
        name: The name of the table in this file; empty for a list of tokens with their weights.
        entries: The number of token ids that have a weight.
    """

    folder: Path
    file: str
    name: str
    entries: int

    @property
    def is_listed(self) -> bool:
        """Whether the file is JSON and names each token; otherwise it is a tensor."""
        return not self.name


def read_weight_table(files: ModelFiles, folder: Path) -> WeightTable:
    """Read what the files say about a table, which is downloaded if necessary.

    Args:
        files: The model.
        folder: The folder of the table and the tokenizer.

    Raises:
        ModelError: A file is missing or wrong.
    """
    config = JsonObject.read_if_present(folder / "config.json", files.folder)
    path = config.text(_PATH, default="")
    # The reference ignores other paths.
    if path.endswith(".json"):
        return _find_list(files, folder, config, path)
    file = fetch_table(files, folder, holds="the weights of tokens")
    with open_tensor_file(file) as tensors:
        if _NAME not in tensors.names:
            raise ModelError(f"{tensors.path} must hold a table named {_NAME}")
        shape, kind = tensors.describe(_NAME)
        if len(shape) != 1 or 0 in shape or kind not in _FLOATS:
            raise ModelError(
                f"{tensors.path}: {_NAME} must be a list of floating-point numbers, not {kind} "
                f"{list(shape)}"
            )
    return WeightTable(folder=folder, file=file.name, name=_NAME, entries=shape[0])


def _find_list(files: ModelFiles, folder: Path, config: JsonObject, path: str) -> WeightTable:
    """Return the table of a JSON file, which is downloaded if necessary.

    The reference looks for the file where the program runs. Here it is in the folder of the module
    or in that of the model.

    Raises:
        ModelError: The file is missing or outside of the model, or there is no tokenizer.
    """
    for place in dict.fromkeys((folder, files.folder)):
        found = find_member(files.folder, place, path, named_by=f"{config.path}: {_PATH}")
        if files.has(found.relative_to(files.folder).as_posix()):
            files.fetch([found.relative_to(files.folder).as_posix()])
            check_file(found, files.folder)
            return WeightTable(
                folder=place, file=path, name="", entries=_count_tokens(folder, files.folder)
            )
    raise ModelError(
        f"{config.path}: {_PATH} names {path!r}, which is missing in {files.folder}: put the file "
        f"of weights there, and its name into {_PATH}"
    )


def _count_tokens(folder: Path, root: Path) -> int:
    """Return the number of tokens; the tokenizer must have as many, or it is refused."""
    tokenizer = read_tokenizer(folder, root)
    model = JsonObject(tokenizer.path, tokenizer.table("model"))
    vocabulary = model.values.get("vocab")
    if isinstance(vocabulary, list):
        names = {entry[0] for entry in vocabulary if isinstance(entry, list) and entry}
    else:
        names = set(model.table("vocab"))
    added = tokenizer.values.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        names.add(token.get("content") if isinstance(token, dict) else None)
    return len(names)
