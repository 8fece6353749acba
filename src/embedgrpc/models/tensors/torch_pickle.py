"""Reads the pickles that torch.save writes, and no others.

A pickle is a program. In `pickle.Unpickler`, a hostile program may change objects after they were
checked, overflow the stack with nested keys, or hash a shared tuple for hours while holding the
GIL. This interpreter runs only the few opcodes that torch.save writes. They build dictionaries with
text as keys, lists, numbers, text and tensor views. It imports and calls nothing, and limits the
number, size and depth of all values.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.pickle_machine import GLOBAL_BYTES_MAX, VALUES_MAX, PickleMachine
from embedgrpc.models.tensors.torch_values import (
    Builder,
    Items,
    OrderedTable,
    Storage,
    StorageType,
    Table,
    TensorView,
    find_global,
)

# A tensor takes about 40 opcodes. Large models have some hundred tensors.

_OPCODES_MAX = 1 << 20
_TENSORS_MAX = 1 << 14
_TEXT_BYTES_MAX = 4096
_KEY_CHARACTERS_MAX = 64
# NumPy supports this many on every platform.
_AXES_MAX = 32
_PROTOCOLS = range(2, 6)


def read_pickle(path: Path, program: bytes) -> object:
    """Read a pickle of torch.save.

    Args:
        path: The file, for messages.
        program: The pickle.

    Returns:
        Dictionaries with text as keys, lists, numbers, text and `TensorView`. Tuples become lists.

    Raises:
        ModelError: The pickle is damaged, exceeds a limit, or uses a global that tensors do not
            need.
    """
    try:
        return _Program(path, program).run()
    except (IndexError, KeyError, struct.error) as error:
        # The stack or the program is too short, or a memo entry is missing.
        raise ModelError(f"{path} is damaged: its data.pkl cannot be read") from error


class _Program(PickleMachine):
    """The program of a `data.pkl`; one method per opcode."""

    def __init__(self, path: Path, program: bytes) -> None:
        super().__init__(path, program)
        self._tensors = 0

    def run(self) -> object:
        """Run the program to its end and return its value."""
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

    def protocol(self) -> None:
        number = self._take(1)[0]
        if number not in _PROTOCOLS:
            raise self._wrong(f"is of pickle protocol {number}; protocols 2 to 5 are supported")

    def frame(self) -> None:
        self._take(8)  # The length is not needed, as the whole program is in memory.

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
        self._put(Items())

    def put_table(self) -> None:
        self._put(Table())

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
        items = Items()
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
        if not isinstance(items, Items):
            raise self._wrong("appends to a value that is not a list")
        self._hold(items, values)
        items.extend(values)

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self._pick_marked())

    def _set(self, pairs: list[Any]) -> None:
        table = self._stack[-1]
        if not isinstance(table, Table):
            raise self._wrong("sets items of a value that is not a dictionary")
        keys, values = pairs[::2], pairs[1::2]
        if len(keys) != len(values):
            raise self._wrong("has a key without a value")
        if not all(isinstance(key, str) for key in keys):
            raise self._wrong("has a key that is not text")
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
        if len(self._memo) > VALUES_MAX:
            raise self._wrong(f"remembers more than {VALUES_MAX} values")

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
        found = find_global(module, name)
        if found is None:
            shown = f"{module}.{name}"[: 2 * GLOBAL_BYTES_MAX]
            raise ModelError(f"{self._path}: global {shown!r} is not allowed in weights")
        self._stack.append(found)

    def put_storage(self) -> None:
        match self._pick_items():
            case ["storage", StorageType(dtype), str(key), str(), count] if _is_size(count):
                if len(key) > _KEY_CHARACTERS_MAX:
                    raise self._wrong(
                        f"has a storage whose key has {len(key)} characters; "
                        f"the limit is {_KEY_CHARACTERS_MAX}"
                    )
                self._put(Storage(key=key, dtype=dtype, count=count))
            case _:
                raise self._wrong("has a reference to something other than a storage")

    def call(self) -> None:
        arguments = self._pick_items()
        match self._stack.pop():
            case Builder.TENSOR:
                self._put(self._view(arguments))
            case Builder.PARAMETER if arguments and isinstance(arguments[0], TensorView):
                self._stack.append(arguments[0])
            case Builder.ORDERED_DICT if not arguments:
                self._put(OrderedTable())
            case _:
                raise self._wrong("calls a function that makes neither tensors nor dictionaries")

    def _view(self, arguments: Items) -> TensorView:
        match arguments:
            case [Storage() as storage, offset, Items() as shape, Items() as strides, *rest]:
                pass
            case _:
                raise self._wrong("has a tensor that is not a view of a storage")
        # The next two arguments are requires_grad and hooks. Later ones may negate the values.
        if any(rest[2:]):
            raise self._wrong("has a tensor that must be changed when it is read")
        if len(shape) > _AXES_MAX or len(shape) != len(strides):
            raise self._wrong(
                f"has a tensor of {len(shape)} axes and {len(strides)} strides; "
                f"the limit is {_AXES_MAX}"
            )
        if not all(map(_is_size, (offset, *shape, *strides))):
            raise self._wrong("has a tensor with sizes that are not whole numbers of at least 0")
        self._tensors += 1
        if self._tensors > _TENSORS_MAX:
            raise self._wrong(f"has more than {_TENSORS_MAX} tensors")
        return TensorView(
            storage=storage, offset=offset, shape=tuple(shape), strides=tuple(strides)
        )

    def build(self) -> None:
        attributes = self._stack.pop()
        if not isinstance(self._stack[-1], OrderedTable) or not isinstance(attributes, Table):
            raise self._wrong("sets attributes of a value that is not an OrderedDict")


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


_STOP = pickle.STOP[0]
# The opcodes that torch.save writes at protocols 2 to 5.
_STEPS: dict[int, Callable[[_Program], None]] = {
    pickle.PROTO[0]: _Program.protocol,
    pickle.FRAME[0]: _Program.frame,
    pickle.MARK[0]: _Program.mark,
    pickle.POP[0]: _Program.pop,
    pickle.NONE[0]: _Program.put_none,
    pickle.NEWTRUE[0]: _Program.put_true,
    pickle.NEWFALSE[0]: _Program.put_false,
    pickle.BININT[0]: _Program.put_int,
    pickle.BININT1[0]: _Program.put_byte,
    pickle.BININT2[0]: _Program.put_short,
    pickle.LONG1[0]: _Program.put_long,
    pickle.BINFLOAT[0]: _Program.put_float,
    pickle.BINUNICODE[0]: _Program.put_text,
    pickle.SHORT_BINUNICODE[0]: _Program.put_short_text,
    pickle.EMPTY_LIST[0]: _Program.put_items,
    pickle.EMPTY_TUPLE[0]: _Program.put_items,
    pickle.EMPTY_DICT[0]: _Program.put_table,
    pickle.TUPLE[0]: _Program.put_tuple,
    pickle.TUPLE1[0]: _Program.put_tuple_1,
    pickle.TUPLE2[0]: _Program.put_tuple_2,
    pickle.TUPLE3[0]: _Program.put_tuple_3,
    pickle.APPEND[0]: _Program.append,
    pickle.APPENDS[0]: _Program.append_all,
    pickle.SETITEM[0]: _Program.set_item,
    pickle.SETITEMS[0]: _Program.set_items,
    pickle.BINPUT[0]: _Program.remember_by_byte,
    pickle.LONG_BINPUT[0]: _Program.remember_by_int,
    pickle.MEMOIZE[0]: _Program.remember_next,
    pickle.BINGET[0]: _Program.recall_by_byte,
    pickle.LONG_BINGET[0]: _Program.recall_by_int,
    pickle.GLOBAL[0]: _Program.put_global,
    pickle.STACK_GLOBAL[0]: _Program.put_stacked_global,
    pickle.BINPERSID[0]: _Program.put_storage,
    pickle.REDUCE[0]: _Program.call,
    pickle.BUILD[0]: _Program.build,
}
