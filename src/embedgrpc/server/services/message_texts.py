"""The texts of a message, each decoded when it is read."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, overload

from embedgrpc.v1 import classify_service_pb2


class HasText(Protocol):
    """A message with a text."""

    text: str


class MessageTexts(Sequence[str]):
    """Texts that are read from a message one by one."""

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self.read(one) for one in range(*index.indices(len(self)))]
        return self.read(index)

    @abstractmethod
    def read(self, index: int) -> str:
        """Return one of the texts."""


class InputTexts(MessageTexts):
    """The texts of the inputs of a stream."""

    def __init__(self, inputs: Sequence[HasText]) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def read(self, index: int) -> str:
        """Return one of the texts."""
        return self._inputs[index].text


class PairTexts(MessageTexts):
    """The texts of pairs, first and second in turn."""

    def __init__(self, pairs: Sequence[classify_service_pb2.TextPair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def read(self, index: int) -> str:
        """Return one of the texts."""
        pair = self._pairs[index // 2]
        return pair.second if index % 2 else pair.first
