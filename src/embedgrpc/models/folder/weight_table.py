"""Reads the table of token weights that makes the queries of inference-free SPLADE.

A text's vector holds the weight of each token that occurs in it, however often.

Source: `SparseStaticEmbedding` of sentence-transformers 6.2.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import check_file
from embedgrpc.models.sources.fetching import fetch_weights
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.tensors.shards import open_tensor_file

_NAME = "weight"
_FILES = ("model.safetensors", "pytorch_model.bin")
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True, slots=True)
class WeightTable:
    """A table with a weight for each token.

    Attributes:
        file: The file of the table, relative to the folder of the tokenizer.
        name: The name of the table in this file.
        entries: The number of token ids that have a weight.
    """

    file: str
    name: str
    entries: int


def read_weight_table(files: ModelFiles, folder: Path) -> WeightTable:
    """Read what the files say about a table, which is downloaded if necessary.

    Args:
        files: The model.
        folder: The folder of the table and the tokenizer.

    Raises:
        ModelError: A file is missing or wrong.
    """
    config = JsonObject.read_if_present(folder / "config.json", files.folder)
    if config.values.get("path") is not None:
        raise ModelError(
            f"{config.path}: path names a file of weights elsewhere: load the model with "
            "SparseEncoder of sentence-transformers and save it, which writes model.safetensors"
        )
    place = PurePosixPath(folder.relative_to(files.folder))
    file = next((name for name in _FILES if files.has(str(place / name))), None)
    if file is None:
        raise ModelError(f"{folder / _FILES[0]} is missing: it must hold the weights of tokens")
    fetch_weights(files, folder, file=file)
    path = folder / file
    check_file(path, files.folder)
    with open_tensor_file(path) as tensors:
        if _NAME not in tensors.names:
            raise ModelError(f"{path} must hold a table named {_NAME}")
        shape, kind = tensors.describe(_NAME)
        if len(shape) != 1 or 0 in shape or kind not in _FLOATS:
            raise ModelError(
                f"{path}: {_NAME} must be a list of floating-point numbers, not {kind} "
                f"{list(shape)}"
            )
    return WeightTable(file=file, name=_NAME, entries=shape[0])
