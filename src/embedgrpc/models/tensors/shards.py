"""Reads models whose weights are in several files, named by an index.

Source: the index that transformers writes beside shards of safetensors or torch files.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import check_file, check_name
from embedgrpc.models.tensors.torch_tensors import TorchTensors
from embedgrpc.models.tensors.weights import TensorFile, Tensors

_INDEX_SUFFIX = ".index.json"
_SHARDS_MAX = 1024


def open_tensor_file(path: Path) -> Tensors:
    """Open a safetensors file, or one of torch.

    Raises:
        ModelError: It cannot be read.
    """
    return TensorFile(path) if path.suffix == ".safetensors" else TorchTensors(path)


class TensorShards(Tensors):
    """The files of a model with several."""

    def __init__(self, index_path: Path, root: Path) -> None:
        """Open the files that an index names.

        Raises:
            ModelError: A file cannot be read, lacks a tensor that the index puts there, or has
                one that the index puts in another.
        """
        self.path = index_path
        self._homes: dict[str, Tensors] = {}
        files: dict[Path, Tensors] = {}
        with ExitStack() as opening:
            for path, names in read_shards(index_path, root).items():
                file = opening.enter_context(open_tensor_file(path))
                lost = sorted(names - file.names)
                if lost:
                    raise ModelError(f"{path} has no {lost[0]}, which {index_path.name} puts there")
                files[path] = file
                self._homes |= dict.fromkeys(names, file)
            self._check_once(files)
            self._stack = opening.pop_all()
        self.names = frozenset(self._homes)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _check_once(self, files: Mapping[Path, Tensors]) -> None:
        """Check that no tensor is in two files: it is unknown which of them counts."""
        for path, file in files.items():
            for name in sorted(file.names & self._homes.keys()):
                if self._homes[name] is not file:
                    raise ModelError(
                        f"{path} has {name}, which {self.path.name} puts in "
                        f"{self._homes[name].path.name}"
                    )

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and type of a tensor; see `Tensors`."""
        return self._homes[name].describe(name)

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32."""
        return self._homes[name].read(name)

    def read_integers(self, name: str) -> NDArray[np.int64]:
        """Read a tensor of whole numbers; see `Tensors`."""
        return self._homes[name].read_integers(name)


def read_shards(index_path: Path, root: Path) -> Mapping[Path, frozenset[str]]:
    """Return the names of the tensors in each file of a model.

    Args:
        index_path: `model.safetensors.index.json` or `pytorch_model.bin.index.json`.
        root: The model's folder.

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
    """Return the file name of each tensor, relative to the index. The files need not exist.

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
    suffix = Path(index_path.name.removesuffix(_INDEX_SUFFIX)).suffix
    for name in names:
        if Path(name).name != name or name in {"", ".", ".."}:
            raise ModelError(f"{index_path}: weight_map: {name!r} is not a file name")
        check_name(name, named_by=f"{index_path}: weight_map")
        if Path(name).suffix != suffix:
            raise ModelError(f"{index_path}: weight_map: {name!r} does not end with {suffix}")
    return homes
