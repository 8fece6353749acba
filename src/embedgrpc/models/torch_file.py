"""Reads the tensors of a file that torch.save wrote, without torch.

Source: the zip format of PyTorch 1.6 and later: `NAME/data.pkl` describes the tensors, and
`NAME/data/KEY` hold their values.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.errors import ModelError
from embedgrpc.models.lfs import check_no_pointer
from embedgrpc.models.torch_pickle import Storage, TensorView, read_pickle

_ZIP_START = b"PK\x03\x04"
_DESCRIPTION = "data.pkl"
# Of a model with many thousand tensors; each takes some 200 bytes.
_DESCRIPTION_BYTES_MAX = 16 << 20
_ENCRYPTED_FLAG = 1
# What zipfile raises on broken headers, besides its own error.
_DAMAGES = (
    zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
    struct.error,
)  # fmt: skip


def read_tensors(path: Path) -> Mapping[str, NDArray[Any]]:
    """Reads all tensors of a file.

    Args:
        path: A `.pt` or `.bin` file with a dictionary of tensors, or one such dictionary inside
            a dictionary.

    Returns:
        The tensors by name: float32 where they are of floating point in any width, and as they
        are where they are not. They are read-only.

    Raises:
        ModelError: The file cannot be read, is cut short, is of another format, or asks for
            anything but tensors to be made.
    """
    check_no_pointer(path)
    _check_format(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(path, archive).read()
    except _DAMAGES as error:
        raise ModelError(f"{path} is damaged or cut short: it is no whole zip file") from error


def _check_format(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(_ZIP_START))
    if start != _ZIP_START:
        raise ModelError(
            f"{path} is not in torch's zip format: load it and save it anew with PyTorch 1.6 or "
            "later, or as safetensors"
        )


class _Archive:
    """An open file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive
        self.size = path.stat().st_size
        self.storages: dict[str, NDArray[np.uint8]] = {}
        _check_members(path, archive, self.size)
        self.prefix = _find_prefix(path, archive)

    def read(self) -> Mapping[str, NDArray[Any]]:
        """All tensors."""
        if self._member("byteorder", default=b"little").strip() != b"little":
            raise ModelError(f"{self.path}: byteorder must be little")
        views = _find_views(self.path, read_pickle(self.path, self._description()))
        # Views may overlap, but no file of use has more values than bytes.
        if sum(view.count for view in views.values()) > self.size:
            raise ModelError(f"{self.path}: its tensors have more values than the file has bytes")
        return {name: self._tensor(view) for name, view in views.items()}

    def _description(self) -> bytes:
        size = self.archive.getinfo(self.prefix + _DESCRIPTION).file_size
        if size > _DESCRIPTION_BYTES_MAX:
            raise ModelError(
                f"{self.path}: data.pkl has {size} bytes, more than {_DESCRIPTION_BYTES_MAX}"
            )
        return self.archive.read(self.prefix + _DESCRIPTION)

    def _tensor(self, view: TensorView) -> NDArray[Any]:
        values = self._storage(view.storage)[view.offset :]
        strides = tuple(step * values.itemsize for step in view.strides)
        tensor = np.lib.stride_tricks.as_strided(values, view.shape, strides, writeable=False)
        if view.storage.dtype == "bfloat16":
            # The upper half of a float32.
            return (tensor.astype(np.uint32) << 16).view(np.float32)
        if tensor.dtype.kind == "f":
            return tensor.astype(np.float32, copy=False)
        return tensor

    def _storage(self, storage: Storage) -> NDArray[Any]:
        raw = self.storages.get(storage.key)
        if raw is None:
            content = self._member(f"data/{storage.key}")
            raw = self.storages[storage.key] = np.frombuffer(content, dtype=np.uint8)
        stored = np.dtype("uint16" if storage.dtype == "bfloat16" else storage.dtype)
        if len(raw) < storage.count * stored.itemsize:
            raise ModelError(
                f"{self.path}: data/{storage.key} has {len(raw)} bytes, "
                f"not {storage.count * stored.itemsize}"
            )
        return raw[: storage.count * stored.itemsize].view(stored.newbyteorder("<"))

    def _member(self, name: str, *, default: bytes | None = None) -> bytes:
        try:
            return self.archive.read(self.prefix + name)
        except KeyError:
            if default is not None:
                return default
            raise ModelError(f"{self.path}: {name} is missing in it") from None


def _check_members(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    for member in members:
        stored = member.compress_type == zipfile.ZIP_STORED
        if not stored or member.flag_bits & _ENCRYPTED_FLAG:
            raise ModelError(f"{path}: {member.filename!r} is compressed, as torch never does")
    if sum(member.file_size for member in members) > size:
        raise ModelError(f"{path}: its members claim more bytes than the {size} it has")


def _find_prefix(path: Path, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.rpartition("/")[2] == _DESCRIPTION]
    if len(names) != 1:
        raise ModelError(f"{path} is a zip file, but not of torch: it has {len(names)} data.pkl")
    return names[0].removesuffix(_DESCRIPTION)


def _find_views(path: Path, content: object) -> Mapping[str, TensorView]:
    if isinstance(content, dict):
        views = _views(content)
        inner = [value for value in content.values() if isinstance(value, dict)]
        if not views and len(inner) == 1:
            views = _views(inner[0])
        if views:
            return views
    raise ModelError(f"{path} must hold a dictionary of tensors")


def _views(table: Mapping[Any, Any]) -> Mapping[str, TensorView]:
    return {
        name: value
        for name, value in table.items()
        if isinstance(name, str) and isinstance(value, TensorView)
    }
