"""The stack machine that runs a pickle, with limits on all that the program builds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.torch_values import Items, Table

# Large models have some hundred tensors of about 10 values.
VALUES_MAX = 1 << 18
GLOBAL_BYTES_MAX = 256
_DEPTH_MAX = 32


class PickleMachine:
    """The state of a program: its position, stack, marks and memo."""

    def __init__(self, path: Path, program: bytes) -> None:
        self._path = path
        self._program = program
        self._position = 0
        # The values since the last mark, and the values before each mark.
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._values = 0

    # Reading the program.

    def _take(self, size: int) -> bytes:
        taken = self._program[self._position : self._position + size]
        if len(taken) < size:
            raise IndexError
        self._position += size
        return taken

    def _take_number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _take_line(self) -> str:
        end = self._program.find(b"\n", self._position, self._position + GLOBAL_BYTES_MAX + 1)
        if end < 0:
            raise self._wrong(f"has a global with a name of more than {GLOBAL_BYTES_MAX} bytes")
        return self._decode(self._take(end + 1 - self._position)[:-1])

    def _decode(self, content: bytes) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._wrong("has a text that is not UTF-8") from error

    # Changing the stack.

    def _put(self, value: object) -> None:
        """Push a value that needs memory, and count it."""
        self._values += 1
        if self._values > VALUES_MAX:
            raise self._wrong(f"has more than {VALUES_MAX} values")
        self._push(value)

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pick(self, count: int) -> list[Any]:
        """Pop some values, the last of them last."""
        return [self._stack.pop() for _ in range(count)][::-1]

    def _pick_marked(self) -> list[Any]:
        """Pop all values since the last mark."""
        picked = self._stack
        self._stack = self._marked.pop()
        return picked

    def _pick_items(self) -> Items:
        picked = self._stack.pop()
        if not isinstance(picked, Items):
            raise self._wrong("lacks a tuple")
        return picked

    def _hold(self, holder: Items | Table, values: Iterable[object]) -> None:
        """Check that a list or a dictionary may contain values, before they are added."""
        if holder.held:
            raise self._wrong("changes a value that is already part of another")
        for value in values:
            if isinstance(value, (Items, Table)):
                value.held = True
                holder.depth = max(holder.depth, value.depth + 1)
        if holder.held:  # by itself
            raise self._wrong("changes a value that is already part of another")
        self._check_depth(holder.depth)

    def _check_depth(self, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise self._wrong(f"nests values more than {_DEPTH_MAX} deep")

    def _wrong(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: data.pkl {what}")
