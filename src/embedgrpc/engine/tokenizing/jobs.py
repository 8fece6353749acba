"""What one job has tokenized: no more of each text than is read."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.tokenizing.texts import CheckedText
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.tokenizers.cut_points import CutPoints, Pieces

# About 10 ms of work for one core: the longest that an interactive text waits for a slice.
SLICE_CHARACTERS = 32_768
# Of a text that is cut anyway, a piece of so many characters for each token that is read comes
# first. English has 4 to 5 characters a token, Chinese 1 to 2: what is too much is wasted, and
# what is too little takes another round.
_PIECE_CHARACTERS_PER_TOKEN = 6
# Below this a second round costs more than it saves.
_PIECE_CHARACTERS_MIN = 512


@dataclass(frozen=True, slots=True)
class Reading:
    """How much of each text is read.

    Attributes:
        tokens: Only so many tokens of a text are read.
        from_end: Whether they are its last ones.
        with_first: Whether each text shares this number with the first text, as the documents of a
            cross-encoder do with the query. Then the first is tokenized as a whole, and of the
            others as many tokens as it has at least, for the longer of two is cut.
    """

    tokens: int
    from_end: bool = False
    with_first: bool = False


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A text as it was tokenized.

    Attributes:
        ids: int64 [tokens], without special tokens. Where there are more than are read, these may
            be a part of them, still more than are read.
        characters_cut: Whether characters were cut from the text before.
    """

    ids: IntArray
    characters_cut: bool


# What became of a text: its tokens, or the reason why there are none.
TokenizeResult = Tokenized | EngineError


class Tokenization:
    """Texts to tokenize, and whom to tell.

    Args:
        texts: What to tokenize, as it was sent.
        check: Checks the text at an index and puts the prompt in front; raises an EngineError if
            it cannot be used. Called on the tokenizing thread, once for each text, in order.
        work_class: Interactive texts go first.
        caller: Who takes turns with the other callers of the class.
        atomic: Whether one text that cannot be used makes the others useless.
        reading: How much of each text is read; None where all of it is.
        wanted: Tells whether anybody still waits.
        done: Takes what became of each text. Called on the tokenizing thread.
        failed: Takes the error instead, when tokenizing or `done` raised, or a text of an atomic
            job cannot be used. Called on the same thread.
    """

    __slots__ = (
        "_atomic",
        "_check",
        "_missing",
        "_next",
        "_outcomes",
        "_reading",
        "_texts",
        "_unfinished",
        "caller",
        "done",
        "failed",
        "wanted",
        "work_class",
    )

    def __init__(
        self,
        *,
        texts: Sequence[str],
        check: Callable[[int, str], CheckedText],
        work_class: WorkClass,
        caller: str,
        atomic: bool,
        reading: Reading | None,
        wanted: Callable[[], bool],
        done: Callable[[list[TokenizeResult]], None],
        failed: Callable[[EngineError], None],
    ) -> None:
        self.work_class = work_class
        self.caller = caller
        self.wanted = wanted
        self.done = done
        self.failed = failed
        self._texts = texts
        self._check = check
        self._atomic = atomic
        self._reading = reading
        self._outcomes: list[TokenizeResult | None] = [None] * len(texts)
        self._missing = len(texts)
        self._next = 0
        self._unfinished: deque[_LongText] = deque()

    @property
    def is_done(self) -> bool:
        """Whether it is known what became of each text."""
        return not self._missing

    def outcomes(self) -> list[TokenizeResult]:
        """Returns what became of each text, once that is known."""
        return [one for one in self._outcomes if one is not None]

    def take(self, room: int, cut_points: CutPoints | None) -> "list[Piece]":
        """Takes what to tokenize next.

        Args:
            room: About how many characters.
            cut_points: Where texts may be cut.

        Returns:
            Texts and pieces of texts, to be given to `add` in this order.

        Raises:
            EngineError: A text of an atomic job cannot be used.
        """
        taken: list[Piece] = []
        while room > 0:
            if self._unfinished:
                piece = self._unfinished.popleft().take()
            elif self._next < len(self._texts) and not self._awaits_first(taken):
                index = self._next
                self._next += 1
                try:
                    checked = self._check(index, self._texts[index])
                except EngineError as error:
                    if self._atomic:
                        raise
                    # Its frames hold this, which holds the error.
                    self._settle(index, error.with_traceback(None))
                    continue
                piece = self._begin(index, checked, cut_points)
            else:
                break
            taken.append(piece)
            room -= len(piece.text)
        return taken

    def add(self, pieces: "Sequence[Piece]", ids: Iterable[IntArray]) -> None:
        """Takes the token ids, int64 [tokens], of what was taken."""
        for piece, found in zip(pieces, ids, strict=True):
            long = piece.long
            if long is None:
                self._settle(piece.position, Tokenized(found, piece.characters_cut))
                continue
            long.add(found)
            if long.pieces.exhausted or long.tokens > self._tokens_read(piece.position):
                self._settle(piece.position, Tokenized(long.ids(), piece.characters_cut))
            else:
                self._unfinished.append(long)

    def _settle(self, index: int, outcome: TokenizeResult) -> None:
        self._outcomes[index] = outcome
        self._missing -= 1

    def _begin(self, index: int, checked: CheckedText, cut_points: CutPoints | None) -> "Piece":
        size, from_end = SLICE_CHARACTERS, False
        if self._reading is not None and not (self._reading.with_first and index == 0):
            size = max(self._reading.tokens * _PIECE_CHARACTERS_PER_TOKEN, _PIECE_CHARACTERS_MIN)
            size, from_end = min(size, SLICE_CHARACTERS), self._reading.from_end
        # What is left of a text that is hardly longer is not worth another round.
        if cut_points is None or len(checked.text) <= size + size // 2:
            return Piece(index, checked.text, checked.cut, None)
        pieces = Pieces(checked.text, cut_points, from_end=from_end, characters=size)
        return _LongText(index, pieces, characters_cut=checked.cut, from_end=from_end).take()

    def _awaits_first(self, taken: "Sequence[Piece]") -> bool:
        """Whether it must be known first how many tokens the first text has."""
        if self._reading is None or not self._reading.with_first or self._next == 0:
            return False
        return self._outcomes[0] is None and not (taken and taken[0].long is None)

    def _tokens_read(self, index: int) -> float:
        reading = self._reading
        if reading is None or (reading.with_first and index == 0):
            return float("inf")
        first = self._outcomes[0]
        if reading.with_first and isinstance(first, Tokenized):
            return max(reading.tokens, len(first.ids))
        return reading.tokens


class Piece(NamedTuple):
    """The text at a position, or a piece of it."""

    position: int
    text: str
    characters_cut: bool
    long: "_LongText | None"


class _LongText:
    """A text that is tokenized in pieces."""

    __slots__ = ("_characters_cut", "_from_end", "_index", "_parts", "pieces", "tokens")

    def __init__(self, index: int, pieces: Pieces, *, characters_cut: bool, from_end: bool) -> None:
        self.pieces = pieces
        self.tokens = 0
        self._index = index
        self._characters_cut = characters_cut
        self._from_end = from_end
        self._parts: list[IntArray] = []

    def take(self) -> Piece:
        """Takes the next piece."""
        return Piece(self._index, self.pieces.take(), self._characters_cut, self)

    def add(self, ids: IntArray) -> None:
        """Takes the token ids of that piece."""
        self._parts.append(ids)
        self.tokens += len(ids)

    def ids(self) -> IntArray:
        """Returns the ids of all pieces that were taken, in the order of the text."""
        return np.concatenate(self._parts[::-1] if self._from_end else self._parts)
