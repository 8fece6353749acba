"""Unpickles the description of tensors that torch.save writes, and nothing else.

A pickle is a program. This one may build dictionaries and describe tensors; every other global
that it names is refused before anything of it is called.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError

# By the name of the class in the module `torch`.
_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# What torch.save writes at protocols 2 to 5; memory that these take is bounded by the file's size.
_OPCODES = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "POP", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
     "BINPERSID", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE",
     "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
     "SHORT_BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST",
     "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"}
)  # fmt: skip
# The table of remembered values grows to the highest number that a program uses.
_REMEMBERED_MAX = 1 << 20
# What NumPy takes on every platform.
_AXES_MAX = 32
_SIZE_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Storage:
    """The values that one or several tensors are views of.

    Attributes:
        key: Its name in the file.
        dtype: Of a value, as NumPy spells it, or `bfloat16`.
        count: Values in it.
    """

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor as a view of a storage, inside its bounds.

    Attributes:
        storage: Where its values are.
        offset: The first of them.
        shape: Of the tensor.
        strides: From one value to the next along each axis, in values; none is below 0.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """Values in the tensor."""
        return math.prod(self.shape)


class StateDict(dict[Any, Any]):
    """A dictionary whose pickled attributes are dropped: they tell of modules, not of tensors."""

    def __setstate__(self, state: object) -> None:
        """Takes no state."""


def read_pickle(path: Path, program: bytes) -> object:
    """Unpickles what torch.save wrote.

    Args:
        path: The file, to be named in messages.
        program: The pickle.

    Returns:
        Dictionaries, lists, numbers and strings; tensors are `TensorView`.

    Raises:
        ModelError: It is broken, or names anything that is no part of a tensor.
    """
    try:
        _check_opcodes(path, program)
        return _Unpickler(path, program).load()
    except ModelError:
        raise
    except Exception as error:  # a broken program fails in as many ways as Python has
        raise ModelError(f"{path} is damaged: its data.pkl cannot be read") from error


def _check_opcodes(path: Path, program: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name not in _OPCODES:
            raise ModelError(f"{path}: pickle opcode {opcode.name} is not allowed in weights")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > _REMEMBERED_MAX:
            raise ModelError(f"{path}: pickle opcode LONG_BINPUT goes beyond {_REMEMBERED_MAX}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, program: bytes) -> None:
        super().__init__(io.BytesIO(program))
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        found = _GLOBALS.get((module, name))
        if found is None:
            raise ModelError(
                f"{self._path}: global {f'{module}.{name}'!r} is not allowed in weights"
            )
        return found

    def persistent_load(self, reference: object) -> Storage:
        match reference:
            case ("storage", _StorageType(dtype), str(key), str(), int(count)) if count >= 0:
                return Storage(key=key, dtype=dtype, count=count)
        raise ValueError("no reference to a storage")


@dataclass(frozen=True, slots=True)
class _StorageType:
    """Stands for torch's class; cannot be called."""

    dtype: str


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *_rest: object
) -> TensorView:
    if not isinstance(storage, Storage) or not isinstance(offset, int):
        raise TypeError("no view of a storage")
    sizes, steps = _whole(shape), _whole(strides)
    if len(sizes) != len(steps) or offset < 0:
        raise ValueError("no view of a storage")
    last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if max(sizes, default=0) > _SIZE_MAX:
        raise ValueError("an axis is too long")
    if 0 not in sizes and last >= storage.count:
        raise ValueError("the view leaves its storage")
    # What no two values are apart by may be any number in the file.
    used = [size > 1 and 0 not in sizes for size in sizes]
    steps = tuple(step if use else 0 for step, use in zip(steps, used, strict=True))
    return TensorView(storage=storage, offset=offset, shape=sizes, strides=steps)


def _rebuild_parameter(tensor: object, *_rest: object) -> object:
    return tensor


def _whole(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(isinstance(value, int) for value in values):
        raise TypeError("no sizes")
    if len(values) > _AXES_MAX or any(value < 0 for value in values):
        raise ValueError("no sizes")
    return values


_GLOBALS: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): StateDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
