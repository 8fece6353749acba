"""Chooses the file of a model's weights, and hashes it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.lfs import check_no_pointer
from embedgrpc.models.files.model_file import check_file, find_member, hash_file
from embedgrpc.models.tensors.shards import TensorShards, open_tensor_file, read_shards
from embedgrpc.models.tensors.weights import Tensors

# A variant such as `model_quantized.onnx` must be configured.
_ONNX_NAMES = ("onnx/model.onnx", "model.onnx")
SAFETENSORS_NAME = "model.safetensors"
_INDEX_NAME = f"{SAFETENSORS_NAME}.index.json"
_TORCH_NAME = "pytorch_model.bin"
_TORCH_INDEX_NAME = f"{_TORCH_NAME}.index.json"

# The weights of a LoRA adapter, the preferred first.
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


class Format(StrEnum):
    """The file format of weights."""

    ONNX = "onnx"
    SAFETENSORS = "safetensors"
    SHARDS = "shards"
    TORCH = "torch"
    LISTED = "list"


_WEIGHTS = {
    SAFETENSORS_NAME: Format.SAFETENSORS,
    _INDEX_NAME: Format.SHARDS,
    _TORCH_NAME: Format.TORCH,
    _TORCH_INDEX_NAME: Format.SHARDS,
}
_SUFFIXES = {".onnx": Format.ONNX, ".safetensors": Format.SAFETENSORS, ".bin": Format.TORCH}


@dataclass(frozen=True, slots=True)
class WeightFile:
    """The file of weights that a graph is built from.

    Attributes:
        root: The model's folder; nothing outside of it is read.
        folder: The backbone's folder.
        path: The file, inside the folder; for shards their index.
        digest: The SHA-256 of the content, in hexadecimal; for shards of the digests of all files.
    """

    format: Format
    root: Path
    folder: Path
    path: Path
    digest: str


def find_weight_file(folder: Path, root: Path, *, file: str = "") -> WeightFile:
    """Return a model's weights, hashed.

    Args:
        folder: The backbone's folder.
        root: The model's folder.
        file: The file relative to the backbone's folder; empty for the choice of
            `choose_weights`.

    Raises:
        ModelError: There is none that can be used.
    """
    if file:
        return _find_configured(folder, root, file)
    name = choose_weights(lambda name: (folder / name).exists())
    if name is None:
        raise ModelError(
            f"{folder / SAFETENSORS_NAME} is missing, and so is {folder / _ONNX_NAMES[0]}"
            + _describe_others(folder)
        )
    return _hash(folder, root, folder / name, _WEIGHTS.get(name, Format.ONNX))


def find_listed_weights(folder: Path, root: Path, *, file: str) -> WeightFile:
    """Return the JSON file with the weights of tokens, hashed.

    Raises:
        ModelError: It cannot be read, or is outside of the model's folder.
    """
    return _hash(folder, root, folder / file, Format.LISTED)


def choose_weights(has: Callable[[str], bool]) -> str | None:
    """Return the name of the default file of weights: ONNX, else safetensors, else torch.

    Args:
        has: Whether a file exists, by its name relative to the backbone's folder.

    Returns:
        The name, or None if there is no such file.
    """
    return next((name for name in (*_ONNX_NAMES, *_WEIGHTS) if has(name)), None)


def choose_adapter_weights(has: Callable[[str], bool]) -> str | None:
    """Return the name of the weights of an adapter, or None if there are none.

    Args:
        has: Whether a file exists, by its name relative to the adapter's folder.
    """
    return next((name for name in ADAPTER_WEIGHTS if has(name)), None)


def _describe_others(folder: Path) -> str:
    """Return a hint that names the other ONNX files; empty if there are none."""
    paths = [*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")]
    others = sorted(str(path.relative_to(folder)) for path in paths)
    if not others:
        return ""
    return f"; set file for this model in the configuration to one of {', '.join(others)}"


def _find_configured(folder: Path, root: Path, file: str) -> WeightFile:
    path = find_member(root, folder, file, named_by="file in the configuration")
    name = PurePosixPath(file)
    if not path.exists():
        raise ModelError(f"{path} is missing: the configuration names it as file")
    if name.name.endswith(".index.json"):
        return _hash(folder, root, path, Format.SHARDS)
    if name.suffix not in _SUFFIXES:
        raise ModelError(f"{path}: file must end with {', '.join(_SUFFIXES)}")
    return _hash(folder, root, path, _SUFFIXES[name.suffix])


def find_external(weight_file: WeightFile, location: str) -> Path:
    """Return a file in which an ONNX graph keeps weights.

    Args:
        weight_file: The graph.
        location: The path in the graph, relative to the graph's folder.

    Raises:
        ModelError: The file is missing, or outside of the model's folder.
    """
    named_by = f"{weight_file.path}: external data"
    path = find_member(weight_file.root, weight_file.path.parent, location, named_by=named_by)
    if not path.exists():
        raise ModelError(f"{named_by} {location!r} is missing")
    if path == weight_file.path.parent:
        raise ModelError(f"{named_by} must name a file, not {location!r}")
    check_file(path, weight_file.root)
    check_no_pointer(path)
    return path


def _hash(folder: Path, root: Path, path: Path, kind: Format) -> WeightFile:
    digest = hash_file(path, root)
    check_no_pointer(path)
    if kind is Format.SHARDS:
        parts = [digest, *(hash_file(shard, root) for shard in read_shards(path, root))]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return WeightFile(format=kind, root=root, folder=folder, path=path, digest=digest)


def open_tensors(weight_file: WeightFile) -> Tensors:
    """Open the weights of a file that is not an ONNX graph.

    Raises:
        ModelError: They cannot be read.
    """
    if weight_file.format is Format.SHARDS:
        return TensorShards(weight_file.path, weight_file.root)
    return open_tensor_file(weight_file.path)
