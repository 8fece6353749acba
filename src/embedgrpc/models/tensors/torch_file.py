"""Reads the tensors of a file from torch.save, without torch.

Source: the zip format of PyTorch 1.6 and later: `NAME/data.pkl` describes the tensors, and
`NAME/data/KEY` contain their values.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.lfs import check_no_pointer
from embedgrpc.models.files.model_file import open_regular
from embedgrpc.models.tensors.torch_pickle import read_pickle
from embedgrpc.models.tensors.torch_values import Storage, TensorView
from embedgrpc.models.tensors.torch_zip import TorchZip

_ZIP_START = b"PK\x03\x04"
_DESCRIPTION = "data.pkl"
# A tensor takes about 200 bytes.
_DESCRIPTION_BYTES_MAX = 8 << 20
_BYTEORDER_BYTES_MAX = 16
_EXTENT_MAX = (1 << 31) - 1


def read_tensors(path: Path) -> Mapping[str, NDArray[Any]]:
    """Read all tensors of a file.

    Args:
        path: A `.pt` or `.bin` file with a dictionary of tensors, or one such dictionary inside
            a dictionary.

    Returns:
        The tensors by name, read-only. Floating-point types become float32, other types stay.
        Equal views of one storage share memory.

    Raises:
        ModelError: The file cannot be read, is cut short, has another format, or contains
            anything but tensors.
    """
    made: dict[TensorView, NDArray[Any]] = {}
    with TorchFile(path) as file:
        for name, view in file.views.items():
            if view not in made:
                made[view] = file.read(name)
        return {name: made[view] for name, view in file.views.items()}


def _check_format(path: Path) -> None:
    with open_regular(path) as file:
        start = file.read(len(_ZIP_START))
    if start != _ZIP_START:
        raise ModelError(
            f"{path} is not in torch's zip format: save it again with PyTorch 1.6 or later, or as "
            "safetensors"
        )


class TorchFile:
    """An open file, for a `with` statement.

    Memory holds the storage that was read last, and no other tensor.

    Attributes:
        views: The tensors by name, all inside their storages.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check what it says about its tensors.

        Raises:
            ModelError: See `read_tensors`.
        """
        check_no_pointer(path)
        _check_format(path)
        self._path = path
        self._archive = TorchZip(path)
        try:
            self._prefix = _find_prefix(self._archive)
            self.views = self._read_views()
        except BaseException:
            self.close()
            raise
        self._key = ""
        self._content = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor; see `read_tensors`.

        Raises:
            ModelError: The file is damaged.
        """
        return self._make_tensor(self.views[name])

    def _read_views(self) -> Mapping[str, TensorView]:
        byteorder = self._read_member("byteorder", bytes_max=_BYTEORDER_BYTES_MAX)
        if byteorder is not None and byteorder.strip() != b"little":
            raise ModelError(f"{self._path}: byteorder must be little")
        description = self._read_member(_DESCRIPTION, bytes_max=_DESCRIPTION_BYTES_MAX)
        views = _find_views(self._path, read_pickle(self._path, description or b""))
        for name, view in views.items():
            self._check_inside(name, view)
        # Views may overlap, but no useful file has more values than bytes.
        if sum(math.prod(view.shape) for view in set(views.values())) > self._archive.size:
            raise ModelError(f"{self._path}: its tensors have more values than the file has bytes")
        return views

    def _check_inside(self, name: str, view: TensorView) -> None:
        """Check a view against its storage, and the storage against the file."""
        storage = view.storage
        member = f"data/{storage.key}"
        size = self._archive.sizes.get(self._prefix + member)
        if size is None:
            raise ModelError(f"{self._path} does not contain {member}")
        wanted = storage.count * _stored_type(storage).itemsize
        if wanted > size:
            raise ModelError(f"{self._path}: {member} has {size} bytes, not {wanted}")
        if 0 in view.shape:
            # It has no values, but NumPy multiplies the other axes.
            if math.prod(filter(None, view.shape)) > _EXTENT_MAX:
                raise ModelError(f"{self._path}: tensor {name!r} has axes that are too long")
            return
        steps = zip(view.shape, view.strides, strict=True)
        last = view.offset + sum((length - 1) * step for length, step in steps)
        if last >= storage.count:
            raise ModelError(
                f"{self._path}: tensor {name!r} ends at value {last} of {member}, "
                f"which has {storage.count}"
            )

    def _make_tensor(self, view: TensorView) -> NDArray[Any]:
        stored = _stored_type(view.storage)
        if 0 in view.shape:
            values: NDArray[Any] = np.empty(view.shape, stored)
            values.flags.writeable = False
        else:
            # Unlike as_strided, this checks the bounds again. The stride of an axis of length 1
            # may be any number in the file.
            steps = zip(view.shape, view.strides, strict=True)
            values = np.ndarray(
                view.shape,
                stored,
                buffer=self._storage(view.storage),
                offset=view.offset * stored.itemsize,
                strides=[stored.itemsize * step if length > 1 else 0 for length, step in steps],
            )
        if view.storage.dtype == "bfloat16":
            # bfloat16 is the upper half of a float32.
            wide = values.astype("<u4")
            wide <<= 16
            values = wide.view("<f4")
        if values.dtype.kind == "f":
            values = values.astype(np.float32, copy=False)
            values.flags.writeable = False
        return values

    def _storage(self, storage: Storage) -> bytes:
        if storage.key != self._key:
            # The old content is dropped first: two storages need not fit into memory.
            self._key, self._content = "", b""
            self._content = self._archive.read(f"{self._prefix}data/{storage.key}")
            self._key = storage.key
        return self._content

    def _read_member(self, name: str, *, bytes_max: int) -> bytes | None:
        size = self._archive.sizes.get(self._prefix + name)
        if size is None:
            return None
        if size > bytes_max:
            raise ModelError(f"{self._path}: {name} has {size} bytes; the limit is {bytes_max}")
        return self._archive.read(self._prefix + name)


def _stored_type(storage: Storage) -> np.dtype[Any]:
    return np.dtype("uint16" if storage.dtype == "bfloat16" else storage.dtype).newbyteorder("<")


def _find_prefix(archive: TorchZip) -> str:
    names = [name for name in archive.sizes if name.rpartition("/")[2] == _DESCRIPTION]
    if len(names) != 1:
        raise ModelError(
            f"{archive.path} is a zip file, but not from torch: it has {len(names)} data.pkl"
        )
    return names[0].removesuffix(_DESCRIPTION)


def _find_views(path: Path, content: object) -> Mapping[str, TensorView]:
    if isinstance(content, dict):
        views = _views(content)
        inner = [value for value in content.values() if isinstance(value, dict)]
        if not views and len(inner) == 1:
            views = _views(inner[0])
        if views:
            return views
    raise ModelError(f"{path} must contain a dictionary of tensors")


def _views(table: Mapping[str, object]) -> Mapping[str, TensorView]:
    return {name: value for name, value in table.items() if isinstance(value, TensorView)}
