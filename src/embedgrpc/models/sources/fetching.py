"""Downloads the weights of a model's backbone from its repository."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import check_file
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import WeightFile, choose_adapter_weights, choose_weights
from embedgrpc.models.tensors.shards import read_shard_names

_INDEX_SUFFIX = ".index.json"
# The files of a table, the preferred first.
_TABLES = ("model.safetensors", "pytorch_model.bin")


def fetch_weights(files: ModelFiles, folder: Path, *, file: str = "") -> None:
    """Download the file of weights, and its shards if it is an index.

    The external files of an ONNX graph are known only after reading it: see `fetch_external`.

    Args:
        files: The model; nothing is downloaded if it has no repository.
        folder: The backbone's folder.
        file: The file relative to that folder; empty for the default choice.

    Raises:
        ModelError: There is no such file, or the download fails.
    """
    if files.repository is None:
        return
    place = PurePosixPath(folder.relative_to(files.folder))
    name = file or choose_weights(lambda name: files.has(str(place / name)))
    if not name or not files.has(str(place / name)):
        raise ModelError(
            f"model source {files.source!r}: the repository has no "
            f"{name or 'onnx/model.onnx and no model.safetensors'} at commit {files.revision}"
        )
    files.fetch([str(place / name)])
    if name.endswith(_INDEX_SUFFIX):
        shards = sorted(set(read_shard_names(folder / name, files.folder).values()))
        files.fetch([str((place / name).parent / shard) for shard in shards])


def fetch_table(files: ModelFiles, folder: Path, *, holds: str) -> Path:
    """Return the file of a table in place of a backbone, downloaded if necessary.

    Raises:
        ModelError: There is no such file, it cannot be read, or the download fails.
    """
    place = PurePosixPath(folder.relative_to(files.folder))
    file = next((name for name in _TABLES if files.has(str(place / name))), None)
    if file is None:
        raise ModelError(f"{folder / _TABLES[0]} is missing: it must hold {holds}")
    fetch_weights(files, folder, file=file)
    check_file(folder / file, files.folder)
    return folder / file


def fetch_adapter(files: ModelFiles, folder: Path) -> None:
    """Download the weights of the adapter beside a model's own; see `fetch_weights`.

    Raises:
        ModelError: The download fails.
    """
    place = PurePosixPath(folder.relative_to(files.folder))
    name = choose_adapter_weights(lambda name: files.has(str(place / name)))
    files.fetch([str(place / name)] if name else [])


def fetch_external(files: ModelFiles, weight_file: WeightFile, locations: Sequence[str]) -> None:
    """Download the files in which an ONNX graph keeps its weights.

    Args:
        files: The model; nothing is downloaded if it has no repository.
        weight_file: The graph.
        locations: The paths in the graph. Paths that the repository lacks are ignored here;
            `find_external` reports them.

    Raises:
        ModelError: The download fails.
    """
    place = PurePosixPath(weight_file.path.parent.relative_to(files.folder))
    files.fetch([str(place / location) for location in locations])
