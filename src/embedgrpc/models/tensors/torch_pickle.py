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
from collections.abc import Callable, Mapping
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
_STOP = pickle.STOP[0]


def read_pickle(path: Path, program: bytes) -> object:
    """Read a pickle of torch.save.

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
    """The program of a `data.pkl`."""

    def __init__(self, path: Path, program: bytes) -> None:
        super().__init__(path, program)
        self._tensors = 0

    def run(self) -> object:
        """Run the program to its end and return its value."""
        steps = self._steps()
        for _ in range(_OPCODES_MAX):
            opcode = self._program[self._position]
            self._position += 1
            if opcode == _STOP:
                return self._stack.pop()
            step = steps.get(opcode)
            if step is None:
                known = {ord(known.code): known.name for known in pickletools.opcodes}
                name = known.get(opcode, f"0x{opcode:02x}")
                raise ModelError(f"{self._path}: pickle opcode {name} is not allowed in weights")
            step()
        raise self._wrong(f"has more than {_OPCODES_MAX} opcodes")

    def _steps(self) -> Mapping[int, Callable[[], object]]:
        """Return what each opcode does that torch.save writes at protocols 2 to 5."""
        push, take, number = self._push, self._take, self._take_number
        return {
            pickle.PROTO[0]: self._check_protocol,
            # Its length is not needed, as the whole program is in memory.
            pickle.FRAME[0]: lambda: take(8),
            pickle.MARK[0]: self._mark,
            pickle.POP[0]: lambda: self._pick(1),
            pickle.NONE[0]: lambda: push(None),
            pickle.NEWTRUE[0]: lambda: push(True),
            pickle.NEWFALSE[0]: lambda: push(False),
            pickle.BININT[0]: lambda: push(number(4, signed=True)),
            pickle.BININT1[0]: lambda: push(number(1)),
            pickle.BININT2[0]: lambda: push(number(2)),
            pickle.LONG1[0]: lambda: push(number(number(1), signed=True)),
            pickle.BINFLOAT[0]: lambda: push(struct.unpack(">d", take(8))[0]),
            pickle.BINUNICODE[0]: lambda: self._put_text(number(4)),
            pickle.SHORT_BINUNICODE[0]: lambda: self._put_text(number(1)),
            pickle.EMPTY_LIST[0]: lambda: self._put(Items()),
            pickle.EMPTY_TUPLE[0]: lambda: self._put(Items()),
            pickle.EMPTY_DICT[0]: lambda: self._put(Table()),
            pickle.TUPLE[0]: lambda: self._put_tuple(self._pick_marked()),
            pickle.TUPLE1[0]: lambda: self._put_tuple(self._pick(1)),
            pickle.TUPLE2[0]: lambda: self._put_tuple(self._pick(2)),
            pickle.TUPLE3[0]: lambda: self._put_tuple(self._pick(3)),
            pickle.APPEND[0]: lambda: self._append(self._pick(1)),
            pickle.APPENDS[0]: lambda: self._append(self._pick_marked()),
            pickle.SETITEM[0]: lambda: self._set(self._pick(2)),
            pickle.SETITEMS[0]: lambda: self._set(self._pick_marked()),
            pickle.BINPUT[0]: lambda: self._remember(number(1)),
            pickle.LONG_BINPUT[0]: lambda: self._remember(number(4)),
            pickle.MEMOIZE[0]: lambda: self._remember(len(self._memo)),
            pickle.BINGET[0]: lambda: push(self._memo[number(1)]),
            pickle.LONG_BINGET[0]: lambda: push(self._memo[number(4)]),
            pickle.GLOBAL[0]: lambda: self._put_global(self._take_line(), self._take_line()),
            pickle.STACK_GLOBAL[0]: lambda: self._put_global(*self._pick(2)),
            pickle.BINPERSID[0]: self._put_storage,
            pickle.REDUCE[0]: self._call,
            pickle.BUILD[0]: self._build,
        }

    def _check_protocol(self) -> None:
        number = self._take_number(1)
        if number not in _PROTOCOLS:
            raise self._wrong(f"is of pickle protocol {number}; protocols 2 to 5 are supported")

    def _mark(self) -> None:
        self._check_depth(len(self._marked) + 1)
        self._marked.append(self._stack)
        self._stack = []

    def _put_text(self, size: int) -> None:
        if size > _TEXT_BYTES_MAX:
            raise self._wrong(f"has a text of {size} bytes; the limit is {_TEXT_BYTES_MAX}")
        self._put(self._decode(self._take(size)))

    def _put_tuple(self, values: list[Any]) -> None:
        items = Items()
        self._hold(items, values)
        items.extend(values)
        self._put(items)

    def _append(self, values: list[Any]) -> None:
        items = self._stack[-1]
        if not isinstance(items, Items):
            raise self._wrong("appends to a value that is not a list")
        self._hold(items, values)
        items.extend(values)

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

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]
        if len(self._memo) > VALUES_MAX:
            raise self._wrong(f"remembers more than {VALUES_MAX} values")

    def _put_global(self, module: object, name: object) -> None:
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._wrong("has a global without a name")
        found = find_global(module, name)
        if found is None:
            shown = f"{module}.{name}"[: 2 * GLOBAL_BYTES_MAX]
            raise ModelError(f"{self._path}: global {shown!r} is not allowed in weights")
        self._push(found)

    def _put_storage(self) -> None:
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

    def _call(self) -> None:
        arguments = self._pick_items()
        match self._stack.pop():
            case Builder.TENSOR:
                self._put(self._view(arguments))
            case Builder.PARAMETER if arguments and isinstance(arguments[0], TensorView):
                self._push(arguments[0])
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

    def _build(self) -> None:
        attributes = self._stack.pop()
        if not isinstance(self._stack[-1], OrderedTable) or not isinstance(attributes, Table):
            raise self._wrong("sets attributes of a value that is not an OrderedDict")


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0
