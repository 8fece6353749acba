"""The parts of a message, each decoded when it is read."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

ItemT = TypeVar("ItemT")


class MessageItems(Sequence[ItemT]):
    """Parts that are read from a message one by one."""

    @overload
    def __getitem__(self, index: int) -> ItemT: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ItemT]: ...

    def __getitem__(self, index: int | slice) -> ItemT | Sequence[ItemT]:
        if isinstance(index, slice):
            return [self.read(one) for one in range(*index.indices(len(self)))]
        return self.read(index)

    @abstractmethod
    def read(self, index: int) -> ItemT:
        """Return one of the parts."""
