"""Brings the weights of a model's backbone from the repository that its files come from."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from embedgrpc.models.errors import ModelError
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import WeightFile, choose_weights
from embedgrpc.models.tensors.weights import read_shard_names

_INDEX_SUFFIX = ".index.json"


def fetch_weights(files: ModelFiles, folder: Path, *, file: str = "") -> None:
    """Brings the file that a graph is to be made from, and the shards that it names.

    What other files an ONNX graph needs is known only when it was read: see `fetch_external`.

    Args:
        files: The model; nothing is done where it comes from no repository.
        folder: The folder of its backbone.
        file: The file to take, relative to that folder; empty for the usual choice.

    Raises:
        ModelError: There is none, or it cannot be had.
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


def fetch_external(files: ModelFiles, weight_file: WeightFile, locations: Sequence[str]) -> None:
    """Brings the files in which an ONNX graph keeps its weights.

    Args:
        files: The model; nothing is done where it comes from no repository.
        weight_file: The graph.
        locations: As the graph has them. Those that the repository does not hold are left out:
            it is told when they are looked for.

    Raises:
        ModelError: They cannot be had.
    """
    place = PurePosixPath(weight_file.path.parent.relative_to(files.folder))
    files.fetch([str(place / location) for location in locations])
