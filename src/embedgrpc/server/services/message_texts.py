"""The texts of a message, each decoded when it is read."""

from collections.abc import Sequence
from typing import Protocol

from embedgrpc.server.contract.message_items import MessageItems
from embedgrpc.v1 import classify_service_pb2


class HasText(Protocol):
    """A message with a text."""

    text: str


class InputTexts(MessageItems[str]):
    """The texts of the inputs of a stream."""

    def __init__(self, inputs: Sequence[HasText]) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def read(self, index: int) -> str:
        """Return one of the texts."""
        return self._inputs[index].text


class PairTexts(MessageItems[str]):
    """The texts of pairs, first and second in turn."""

    def __init__(self, pairs: Sequence[classify_service_pb2.TextPair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def read(self, index: int) -> str:
        """Return one of the texts."""
        pair = self._pairs[index // 2]
        return pair.second if index % 2 else pair.first
