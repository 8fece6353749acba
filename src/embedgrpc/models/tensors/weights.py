"""Reads the tensors of a model's files, one by one."""

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.lfs import check_no_pointer
from embedgrpc.models.files.model_file import check_file, check_name, open_regular

# The header of a model with 20,000 tensors has 2 MB; one of 95 MB takes 24 s and 1.4 GB to read.
_HEADER_BYTES_MAX = 8 << 20
_TENSORS_MAX = 65_536
_SHARDS_MAX = 1024
# Of a model with another size all tensors are wrong.
_FAULTS_SHOWN = 8
_HEADER_SIZE = struct.Struct("<Q")
_DTYPES = frozenset({"F32", "F16", "BF16", "F64"})


class Tensors(ABC):
    """Named tensors that are read one by one. For a `with` statement.

    Attributes:
        path: The file to be named in messages.
        names: Of all tensors.
    """

    path: Path
    names: frozenset[str]

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes what is open."""

    @abstractmethod
    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """The shape of a tensor and its type, named as safetensors names it."""

    @abstractmethod
    def read(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor as float32, whatever it is stored as."""

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Checks that tensors are there, of floating point and of these shapes.

        Raises:
            ModelError: Some are not; it names the first of them.
        """
        faults = []
        for name, shape in shapes.items():
            if name not in self.names:
                faults.append(f"{name} is missing")
                continue
            found, kind = self.describe(name)
            if found != shape:
                faults.append(f"{name} has shape {list(found)}, not {list(shape)}")
            elif kind not in _DTYPES:
                faults.append(f"{name} has type {kind}, which is not supported")
        if faults:
            more = (
                f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
            )
            told = "; ".join(faults[:_FAULTS_SHOWN])
            raise ModelError(f"{self.path} does not fit config.json: {told}{more}")


class TensorFile(Tensors):
    """An open safetensors file."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            ModelError: It cannot be read, or is no safetensors file.
        """
        check_no_pointer(path)
        _check_header(path)
        self.path = path
        try:
            opened: Any = safe_open(str(path), framework="numpy")
            self._file: Any = opened.__enter__()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is no safetensors file: {error}") from error
        self.names = frozenset(self._file.keys())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, traceback)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """The shape of a tensor and its type, named as safetensors names it."""
        header = self._file.get_slice(name)
        return tuple(header.get_shape()), header.get_dtype()

    def read(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor as float32, whatever it is stored as."""
        return np.asarray(self._file.get_tensor(name)).astype(np.float32, copy=False)


class TensorShards(Tensors):
    """The safetensors files among which the tensors of one model are shared out."""

    def __init__(self, index_path: Path, root: Path) -> None:
        """Opens the files.

        Args:
            index_path: The index, which names the file of each tensor.
            root: The model's folder.

        Raises:
            ModelError: A file cannot be read or does not hold what the index says.
        """
        self.path = index_path
        self._homes: dict[str, TensorFile] = {}
        with ExitStack() as opening:
            for path, names in read_shards(index_path, root).items():
                file = opening.enter_context(TensorFile(path))
                lost = sorted(names - file.names)
                if lost:
                    raise ModelError(f"{path} has no {lost[0]}, which {index_path.name} puts there")
                self._homes |= dict.fromkeys(names, file)
            self._stack = opening.pop_all()
        self.names = frozenset(self._homes)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """The shape of a tensor and its type, named as safetensors names it."""
        return self._homes[name].describe(name)

    def read(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor as float32, whatever it is stored as."""
        return self._homes[name].read(name)


def _check_header(path: Path) -> None:
    """Checks that the list of tensors is of a size that is read in no time.

    Raises:
        ModelError: It is not. What else is wrong with it is told by the library.
    """
    with open_regular(path) as file:
        start = file.read(_HEADER_SIZE.size)
        size = _HEADER_SIZE.unpack(start)[0] if len(start) == _HEADER_SIZE.size else 0
        if size > _HEADER_BYTES_MAX:
            raise ModelError(
                f"{path} is no safetensors file: its header has {size} bytes, more than the limit "
                f"of {_HEADER_BYTES_MAX}"
            )
        count = file.read(size).count(b'"data_offsets"')
    if count > _TENSORS_MAX:
        raise ModelError(f"{path} has {count} tensors, more than the limit of {_TENSORS_MAX}")


def read_shards(index_path: Path, root: Path) -> Mapping[Path, frozenset[str]]:
    """Reads which files hold a model's tensors.

    Args:
        index_path: `model.safetensors.index.json`.
        root: The model's folder.

    Returns:
        The names of the tensors in each file.

    Raises:
        ModelError: The index cannot be used, or files are missing; it names each.
    """
    homes = read_shard_names(index_path, root)
    held: dict[str, set[str]] = {}
    for name, home in homes.items():
        held.setdefault(home, set()).add(name)
    files = sorted(held)
    missing = [name for name in files if not (index_path.parent / name).exists()]
    if missing:
        raise ModelError(f"{index_path}: {', '.join(missing)} missing in {index_path.parent}")
    for file in files:
        check_file(index_path.parent / file, root)
    return {index_path.parent / file: frozenset(held[file]) for file in files}


def read_shard_names(index_path: Path, root: Path) -> Mapping[str, str]:
    """Reads which files hold a model's tensors, be they there or not.

    Args:
        index_path: `model.safetensors.index.json`.
        root: The model's folder.

    Returns:
        For each tensor the name of a file beside the index.

    Raises:
        ModelError: The index cannot be used.
    """
    index = JsonObject.read(index_path, root)
    homes = index.table("weight_map")
    if not homes or not all(isinstance(name, str) for name in homes.values()):
        raise index.wrong("weight_map", "an object that names the file of each tensor")
    names = set(homes.values())
    if len(names) > _SHARDS_MAX:
        raise index.wrong("weight_map", f"at most {_SHARDS_MAX} files, not {len(names)}")
    for name in names:
        if Path(name).name != name or name in {"", ".", ".."}:
            raise ModelError(f"{index_path}: weight_map: {name!r} is not the name of a file")
        check_name(name, named_by=f"{index_path}: weight_map")
    return homes
