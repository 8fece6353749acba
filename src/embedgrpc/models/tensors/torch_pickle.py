"""Reads the description of tensors that torch.save writes, and nothing else.

A pickle is a program. Run by `pickle.Unpickler`, a hostile one may change objects after they were
checked, overflow the stack with nested keys, or hash a shared tuple for hours while no other
thread runs. So the few opcodes that torch.save writes are run here, one by one: they build
dictionaries whose keys are text, lists, numbers, text and descriptions of tensors. Nothing is
imported or called, and the number, size and depth of everything is bounded.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
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
# A tensor takes about 40 opcodes and 10 values. Large models have some hundred tensors.
_OPCODES_MAX = 1 << 20
_VALUES_MAX = 1 << 18
_TENSORS_MAX = 1 << 14
_DEPTH_MAX = 32
_TEXT_BYTES_MAX = 4096
_GLOBAL_BYTES_MAX = 256
_KEY_CHARACTERS_MAX = 64
# What NumPy takes on every platform.
_AXES_MAX = 32
_PROTOCOLS = range(2, 6)


@dataclass(frozen=True, slots=True)
class Storage:
    """The values that one or several tensors are views of.

    Attributes:
        key: Its name in the file.
        dtype: The type of a value, as NumPy spells it, or `bfloat16`.
        count: How many values the description says that it has.
    """

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor as a view of a storage, as the description has it: the view may lead outside.

    Attributes:
        storage: Where its values are.
        offset: The first of them; at least 0.
        shape: Of the tensor; at most 32 axes of at least 0.
        strides: From one value to the next along each axis, in values; at least 0, one an axis.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(path: Path, program: bytes) -> object:
    """Reads what torch.save wrote.

    Args:
        path: The file, to be named in messages.
        program: The pickle.

    Returns:
        Dictionaries with text as keys, lists, numbers and text; tensors are `TensorView`.
        Tuples become lists.

    Raises:
        ModelError: The pickle is broken, exceeds a limit, or names anything that is no part of a
            tensor.
    """
    try:
        return _Machine(path, program).run()
    except (IndexError, KeyError, struct.error) as error:
        # The stack or the program is too short, or what is asked for was never remembered.
        raise ModelError(f"{path} is damaged: its data.pkl cannot be read") from error


class _Items(list[Any]):
    """A list or a tuple of a program.

    Attributes:
        depth: 1 for one that holds no list, tuple or dictionary.
        held: Whether another value holds it. It is not changed any more, so that `depth` stays
            right and nothing holds itself.
    """

    __slots__ = ("depth", "held")

    def __init__(self) -> None:
        super().__init__()
        self.depth = 1
        self.held = False


class _Table(dict[str, Any]):
    """A dictionary of a program; see `_Items`."""

    __slots__ = ("depth", "held")

    def __init__(self) -> None:
        super().__init__()
        self.depth = 1
        self.held = False


class _OrderedTable(_Table):
    """A dictionary whose attributes are let pass: they tell of modules, not of tensors."""

    __slots__ = ()


class _Callable(Enum):
    """The globals that REDUCE may use."""

    ORDERED_DICT = ("collections", "OrderedDict")
    TENSOR = ("torch._utils", "_rebuild_tensor_v2")
    PARAMETER = ("torch._utils", "_rebuild_parameter")


@dataclass(frozen=True, slots=True)
class _StorageType:
    """Stands for a class of torch."""

    dtype: str


_CALLABLES = {known.value: known for known in _Callable}
_STORAGE_TYPES = {name: _StorageType(dtype) for name, dtype in _STORAGES.items()}


class _Machine:
    """Runs one program."""

    def __init__(self, path: Path, program: bytes) -> None:
        self._path = path
        self._program = program
        self._position = 0
        # What was put down since the last mark, and below it what was before each mark.
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._values = 0
        self._tensors = 0

    def run(self) -> object:
        """Runs the program to its end and returns its only value."""
        for _ in range(_OPCODES_MAX):
            opcode = self._program[self._position]
            self._position += 1
            if opcode == _STOP:
                return self._stack.pop()
            step = _STEPS.get(opcode)
            if step is None:
                known = {ord(known.code): known.name for known in pickletools.opcodes}
                name = known.get(opcode, f"0x{opcode:02x}")
                raise ModelError(f"{self._path}: pickle opcode {name} is not allowed in weights")
            step(self)
        raise self._wrong(f"has more than {_OPCODES_MAX} opcodes")

    # What opcodes read from the program.

    def _take(self, size: int) -> bytes:
        taken = self._program[self._position : self._position + size]
        if len(taken) < size:
            raise IndexError
        self._position += size
        return taken

    def _take_number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _take_line(self) -> str:
        end = self._program.find(b"\n", self._position, self._position + _GLOBAL_BYTES_MAX + 1)
        if end < 0:
            raise self._wrong(f"has the name of a global of more than {_GLOBAL_BYTES_MAX} bytes")
        return self._decode(self._take(end + 1 - self._position)[:-1])

    def _decode(self, content: bytes) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._wrong("has a text that is no UTF-8") from error

    # What opcodes put down and pick up.

    def _put(self, value: object) -> None:
        """Puts down a value that takes memory of its own."""
        self._values += 1
        if self._values > _VALUES_MAX:
            raise self._wrong(f"has more than {_VALUES_MAX} values")
        self._stack.append(value)

    def _pick_marked(self) -> list[Any]:
        """Picks up all since the last mark."""
        picked = self._stack
        self._stack = self._marked.pop()
        return picked

    def _pick_items(self) -> _Items:
        picked = self._stack.pop()
        if not isinstance(picked, _Items):
            raise self._wrong("has no tuple where one must be")
        return picked

    def _hold(self, holder: _Items | _Table, values: Iterable[object]) -> None:
        """Lets a list or a dictionary hold values, but for putting them in."""
        if holder.held:
            raise self._wrong("changes a value that another one holds already")
        for value in values:
            if isinstance(value, (_Items, _Table)):
                value.held = True
                holder.depth = max(holder.depth, value.depth + 1)
        if holder.held:
            raise self._wrong("changes a value that another one holds already")
        self._check_depth(holder.depth)

    def _check_depth(self, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise self._wrong(f"nests values more than {_DEPTH_MAX} deep")

    def _wrong(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: data.pkl {what}")

    # The opcodes.

    def protocol(self) -> None:
        number = self._take(1)[0]
        if number not in _PROTOCOLS:
            raise self._wrong(f"is of pickle protocol {number}; protocols 2 to 5 are supported")

    def frame(self) -> None:
        self._take(8)  # a length that helps nobody who has the whole program

    def mark(self) -> None:
        self._check_depth(len(self._marked) + 1)
        self._marked.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        self._stack.pop()

    def put_none(self) -> None:
        self._stack.append(None)

    def put_true(self) -> None:
        self._stack.append(True)

    def put_false(self) -> None:
        self._stack.append(False)

    def put_int(self) -> None:
        self._stack.append(self._take_number(4, signed=True))

    def put_byte(self) -> None:
        self._stack.append(self._take(1)[0])

    def put_short(self) -> None:
        self._stack.append(self._take_number(2))

    def put_long(self) -> None:
        self._stack.append(self._take_number(self._take(1)[0], signed=True))

    def put_float(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def put_text(self) -> None:
        self._put_text(self._take_number(4))

    def put_short_text(self) -> None:
        self._put_text(self._take(1)[0])

    def _put_text(self, size: int) -> None:
        if size > _TEXT_BYTES_MAX:
            raise self._wrong(f"has a text of {size} bytes; the limit is {_TEXT_BYTES_MAX}")
        self._put(self._decode(self._take(size)))

    def put_items(self) -> None:
        self._put(_Items())

    def put_table(self) -> None:
        self._put(_Table())

    def put_tuple(self) -> None:
        self._put_tuple(self._pick_marked())

    def put_tuple_1(self) -> None:
        self._put_tuple([self._stack.pop()])

    def put_tuple_2(self) -> None:
        last = self._stack.pop()
        self._put_tuple([self._stack.pop(), last])

    def put_tuple_3(self) -> None:
        last, middle = self._stack.pop(), self._stack.pop()
        self._put_tuple([self._stack.pop(), middle, last])

    def _put_tuple(self, values: list[Any]) -> None:
        items = _Items()
        self._hold(items, values)
        items.extend(values)
        self._put(items)

    def append(self) -> None:
        value = self._stack.pop()
        self._append([value])

    def append_all(self) -> None:
        self._append(self._pick_marked())

    def _append(self, values: list[Any]) -> None:
        items = self._stack[-1]
        if not isinstance(items, _Items):
            raise self._wrong("appends to what is no list")
        self._hold(items, values)
        items.extend(values)

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self._pick_marked())

    def _set(self, pairs: list[Any]) -> None:
        table = self._stack[-1]
        if not isinstance(table, _Table):
            raise self._wrong("sets items of what is no dictionary")
        keys, values = pairs[::2], pairs[1::2]
        if len(keys) != len(values):
            raise self._wrong("has a key without a value")
        if not all(isinstance(key, str) for key in keys):
            raise self._wrong("has a key that is no text")
        self._hold(table, values)
        table.update(zip(keys, values, strict=True))

    def remember_by_byte(self) -> None:
        self._remember(self._take(1)[0])

    def remember_by_int(self) -> None:
        self._remember(self._take_number(4))

    def remember_next(self) -> None:
        self._remember(len(self._memo))

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]
        if len(self._memo) > _VALUES_MAX:
            raise self._wrong(f"remembers more than {_VALUES_MAX} values")

    def recall_by_byte(self) -> None:
        self._stack.append(self._memo[self._take(1)[0]])

    def recall_by_int(self) -> None:
        self._stack.append(self._memo[self._take_number(4)])

    def put_global(self) -> None:
        module = self._take_line()
        self._put_global(module, self._take_line())

    def put_stacked_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._wrong("has a global without a name")
        self._put_global(module, name)

    def _put_global(self, module: str, name: str) -> None:
        found: object = _CALLABLES.get((module, name))
        if module == "torch":
            found = _STORAGE_TYPES.get(name)
        if found is None:
            shown = f"{module}.{name}"[: 2 * _GLOBAL_BYTES_MAX]
            raise ModelError(f"{self._path}: global {shown!r} is not allowed in weights")
        self._stack.append(found)

    def put_storage(self) -> None:
        match self._pick_items():
            case ["storage", _StorageType(dtype), str(key), str(), count] if _is_size(count):
                if len(key) > _KEY_CHARACTERS_MAX:
                    raise self._wrong(
                        f"has a storage whose key has {len(key)} characters; "
                        f"the limit is {_KEY_CHARACTERS_MAX}"
                    )
                self._put(Storage(key=key, dtype=dtype, count=count))
            case _:
                raise self._wrong("has a reference that is none to a storage")

    def call(self) -> None:
        arguments = self._pick_items()
        match self._stack.pop():
            case _Callable.TENSOR:
                self._put(self._view(arguments))
            case _Callable.PARAMETER if arguments and isinstance(arguments[0], TensorView):
                self._stack.append(arguments[0])
            case _Callable.ORDERED_DICT if not arguments:
                self._put(_OrderedTable())
            case _:
                raise self._wrong("makes something else than tensors and dictionaries")

    def _view(self, arguments: _Items) -> TensorView:
        match arguments:
            case [Storage() as storage, offset, _Items() as shape, _Items() as strides, *rest]:
                pass
            case _:
                raise self._wrong("has a tensor that is no view of a storage")
        # Whether it needs a gradient and its hooks do not matter; these may negate its values.
        if any(rest[2:]):
            raise self._wrong("has a tensor that must be changed when it is read")
        if len(shape) > _AXES_MAX or len(shape) != len(strides):
            raise self._wrong(
                f"has a tensor of {len(shape)} axes and {len(strides)} strides; "
                f"the limit is {_AXES_MAX}"
            )
        if not all(map(_is_size, (offset, *shape, *strides))):
            raise self._wrong("has a tensor whose sizes are no whole numbers of at least 0")
        self._tensors += 1
        if self._tensors > _TENSORS_MAX:
            raise self._wrong(f"has more than {_TENSORS_MAX} tensors")
        return TensorView(
            storage=storage, offset=offset, shape=tuple(shape), strides=tuple(strides)
        )

    def build(self) -> None:
        attributes = self._stack.pop()
        if not isinstance(self._stack[-1], _OrderedTable) or not isinstance(attributes, _Table):
            raise self._wrong("sets attributes of what is no OrderedDict")


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


_STOP = pickle.STOP[0]
# What torch.save writes at protocols 2 to 5.
_STEPS: dict[int, Callable[[_Machine], None]] = {
    pickle.PROTO[0]: _Machine.protocol,
    pickle.FRAME[0]: _Machine.frame,
    pickle.MARK[0]: _Machine.mark,
    pickle.POP[0]: _Machine.pop,
    pickle.NONE[0]: _Machine.put_none,
    pickle.NEWTRUE[0]: _Machine.put_true,
    pickle.NEWFALSE[0]: _Machine.put_false,
    pickle.BININT[0]: _Machine.put_int,
    pickle.BININT1[0]: _Machine.put_byte,
    pickle.BININT2[0]: _Machine.put_short,
    pickle.LONG1[0]: _Machine.put_long,
    pickle.BINFLOAT[0]: _Machine.put_float,
    pickle.BINUNICODE[0]: _Machine.put_text,
    pickle.SHORT_BINUNICODE[0]: _Machine.put_short_text,
    pickle.EMPTY_LIST[0]: _Machine.put_items,
    pickle.EMPTY_TUPLE[0]: _Machine.put_items,
    pickle.EMPTY_DICT[0]: _Machine.put_table,
    pickle.TUPLE[0]: _Machine.put_tuple,
    pickle.TUPLE1[0]: _Machine.put_tuple_1,
    pickle.TUPLE2[0]: _Machine.put_tuple_2,
    pickle.TUPLE3[0]: _Machine.put_tuple_3,
    pickle.APPEND[0]: _Machine.append,
    pickle.APPENDS[0]: _Machine.append_all,
    pickle.SETITEM[0]: _Machine.set_item,
    pickle.SETITEMS[0]: _Machine.set_items,
    pickle.BINPUT[0]: _Machine.remember_by_byte,
    pickle.LONG_BINPUT[0]: _Machine.remember_by_int,
    pickle.MEMOIZE[0]: _Machine.remember_next,
    pickle.BINGET[0]: _Machine.recall_by_byte,
    pickle.LONG_BINGET[0]: _Machine.recall_by_int,
    pickle.GLOBAL[0]: _Machine.put_global,
    pickle.STACK_GLOBAL[0]: _Machine.put_stacked_global,
    pickle.BINPERSID[0]: _Machine.put_storage,
    pickle.REDUCE[0]: _Machine.call,
    pickle.BUILD[0]: _Machine.build,
}
