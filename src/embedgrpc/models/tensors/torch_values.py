"""The values of the pickles that torch.save writes: containers, storages and tensor views."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

# NumPy's types by the name of the class in the module `torch`.
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


@dataclass(frozen=True, slots=True)
class Storage:
    """The values of one or several tensors.

    Attributes:
        key: The name in the file.
        dtype: The type of the values: NumPy's name, or `bfloat16`.
        count: The number of values, not checked against the file.
    """

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor as a view of a storage. It is not checked against the size of the storage.

    Attributes:
        offset: The index of the first value; at least 0.
        shape: At most 32 axes of at least 0.
        strides: The distance between values along each axis, in values; at least 0.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Items(list[Any]):
    """A list or a tuple of a program.

    Attributes:
        depth: 1 without an inner list, tuple or dictionary.
        held: Whether another value contains it. It may then no longer change, so that `depth`
            stays correct and nothing contains itself.
    """

    __slots__ = ("depth", "held")

    def __init__(self) -> None:
        super().__init__()
        self.depth = 1
        self.held = False


class Table(dict[str, Any]):
    """A dictionary of a program; see `Items`."""

    __slots__ = ("depth", "held")

    def __init__(self) -> None:
        super().__init__()
        self.depth = 1
        self.held = False


class OrderedTable(Table):
    """An OrderedDict. Its attributes are ignored: they describe modules, not tensors."""

    __slots__ = ()


class Builder(Enum):
    """The functions that the opcode REDUCE may call."""

    ORDERED_DICT = ("collections", "OrderedDict")
    TENSOR = ("torch._utils", "_rebuild_tensor_v2")
    PARAMETER = ("torch._utils", "_rebuild_parameter")


@dataclass(frozen=True, slots=True)
class StorageType:
    """A storage class of torch."""

    dtype: str


_BUILDERS = {builder.value: builder for builder in Builder}
_STORAGE_TYPES = {name: StorageType(dtype) for name, dtype in _STORAGES.items()}


def find_global(module: str, name: str) -> object | None:
    """Return the `StorageType` or `Builder` of a global; None if it is not allowed."""
    return _STORAGE_TYPES.get(name) if module == "torch" else _BUILDERS.get((module, name))
