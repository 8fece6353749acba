"""Chooses the file that holds a model's weights, and identifies its content."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from embedgrpc.models.errors import ModelError
from embedgrpc.models.source import ModelFiles
from embedgrpc.models.weights import check_no_pointer

# Only these names: a variant such as `model_quantized.onnx` is never taken unasked.
_ONNX_NAMES = ("onnx/model.onnx", "model.onnx")
_SAFETENSORS_NAME = "model.safetensors"


class Format(StrEnum):
    """What a model's weights are stored as."""

    ONNX = "onnx"
    SAFETENSORS = "safetensors"


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that a graph is made from.

    Attributes:
        format: What it is.
        folder: The model's folder.
        path: The file, inside the folder.
        digest: The SHA-256 of its content, in hexadecimal.
    """

    format: Format
    folder: Path
    path: Path
    digest: str


def find_origin(files: ModelFiles) -> Origin:
    """Chooses a model's weights: an ONNX export where there is one, else safetensors.

    Args:
        files: The model's folder.

    Returns:
        The file, hashed.

    Raises:
        ModelError: There is none that can be used.
    """
    for name in _ONNX_NAMES:
        if (files.folder / name).exists():
            return _hash(files, files.folder / name, Format.ONNX)
    path = files.folder / _SAFETENSORS_NAME
    if path.exists():
        return _hash(files, path, Format.SAFETENSORS)
    if (files.folder / f"{_SAFETENSORS_NAME}.index.json").exists():
        raise ModelError(f"{path} is missing: weights in several files are not supported")
    raise ModelError(f"{path} is missing, and so is {files.folder / _ONNX_NAMES[0]}")


def find_external(origin: Origin, location: str) -> Path:
    """Finds a file that an ONNX graph names as the place of its weights.

    Args:
        origin: The graph.
        location: As the graph has it, relative to the graph's own folder.

    Returns:
        The file, inside the model's folder.

    Raises:
        ModelError: It is not there, or the location leads out of the model's folder.
    """
    name = PurePosixPath(location)
    path = origin.path.parent / name
    inside = not name.is_absolute() and ".." not in name.parts and location
    if not inside or not path.resolve().is_relative_to(origin.folder.resolve()):
        raise ModelError(f"{origin.path}: external data {location!r} leads out of the model folder")
    if not path.is_file():
        raise ModelError(f"{origin.path}: external data {location!r} is missing")
    check_no_pointer(path)
    return path


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def _hash(files: ModelFiles, path: Path, kind: Format) -> Origin:
    check_no_pointer(path)
    return Origin(format=kind, folder=files.folder, path=path, digest=hash_file(path))
