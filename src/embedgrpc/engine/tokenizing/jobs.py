"""The tokenization of one job, which reads no more of each text than needed."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

import numpy as np

from embedgrpc.engine.errors import OTHERS_MAX, EngineError
from embedgrpc.engine.tokenizing.texts import CheckedText, TextOrIds
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.tokenizers.cut_points import CutPoints, Pieces

# About 0.8 ms of work for one core: the longest that an interactive text waits for one slice, or a
# few times as long where the cores are busy.
SLICE_CHARACTERS = 4096
# What a text takes however short it is: 12 us, as long as so many characters. A slice of short
# texts would else take 5 ms.
_TEXT_CHARACTERS = 64
# A job of at most this cost goes before longer ones: a few texts of a search, for example.
_SHORT_CHARACTERS = SLICE_CHARACTERS // 2
# If a text will be truncated anyway, it is tokenized in pieces of this many characters per token
# that is needed. English has 4 to 5 characters per token, Chinese 1 to 2: a larger value wastes
# work, a smaller one takes more rounds.
_PIECE_CHARACTERS_PER_TOKEN = 6
# Below this size another round costs more than it saves.
_PIECE_CHARACTERS_MIN = 512


class Pairing(Enum):
    """Which texts of a job a model reads together."""

    NONE = auto()
    # Each text with the first, as a query with documents.
    WITH_FIRST = auto()
    # The second with the first, the fourth with the third, and so on.
    WITH_PREVIOUS = auto()

    def first_of(self, index: int) -> int | None:
        """Return the position of the first text in the pair of a text; None without pairs."""
        match self:
            case Pairing.WITH_FIRST:
                return 0
            case Pairing.WITH_PREVIOUS:
                return index - index % 2
        return None


@dataclass(frozen=True, slots=True)
class ReadLimit:
    """How much of each text is tokenized.

    Attributes:
        tokens: Maximum tokens of a text.
        from_end: Whether the last ones count rather than the first.
        pairing: Which texts share this number. The first of a pair is tokenized whole, and at
            least as many tokens of the second, because the longer of the two is truncated.
    """

    tokens: int
    from_end: bool = False
    pairing: Pairing = Pairing.NONE


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A tokenized text.

    Attributes:
        ids: int64 [tokens], without special tokens. Complete, or more than the limit. With places,
            int64 [tokens, 3]: id, and start and end in the text, in characters.
        characters_cut: Whether characters were cut off before tokenization.
    """

    ids: IntArray
    characters_cut: bool


# The tokens of a text, or the reason why there are none.
TokenizeResult = Tokenized | EngineError
# Checks the input at an index: returns the text to tokenize, its prompt included, or the tokens of
# an input that is tokenized already. Called on a tokenizing thread.
Check = Callable[[int, Any], CheckedText | Tokenized]


class Tokenization:
    """The texts of a job that is to be tokenized, and the callbacks for the results.

    All callbacks but `wanted` are called on a tokenizing thread.

    Args:
        texts: The texts as received, or the token ids of some.
        check: Raises an EngineError if an input cannot be used. Called once for each, in order.
        work_class: Interactive texts go first.
        caller: Callers of one class take turns.
        atomic: Whether one text that cannot be used fails the job.
        read_limit: How much of each text is tokenized; None for all of it.
        size_bytes: The approximate size of the texts; None if it is not known.
        wanted: Returns whether the results are still wanted.
        done: Receives the result of each text.
        failed: Receives the error instead if tokenizing or `done` raised, or if a text of an
            atomic job cannot be used.

    Attributes:
        is_short: Whether it takes a small part of a slice at the most.
    """

    __slots__ = (
        "_atomic",
        "_check",
        "_missing",
        "_next",
        "_read_limit",
        "_results",
        "_texts",
        "_unfinished",
        "caller",
        "done",
        "failed",
        "is_short",
        "wanted",
        "work_class",
    )

    def __init__(
        self,
        *,
        texts: Sequence[TextOrIds],
        check: Check,
        work_class: WorkClass,
        caller: str,
        atomic: bool,
        read_limit: ReadLimit | None,
        size_bytes: int | None = None,
        wanted: Callable[[], bool],
        done: Callable[[list[TokenizeResult]], None],
        failed: Callable[[EngineError], None],
    ) -> None:
        self.work_class = work_class
        self.caller = caller
        self.wanted = wanted
        self.done = done
        self.failed = failed
        self.is_short = (
            size_bytes is not None
            and size_bytes + _TEXT_CHARACTERS * len(texts) <= _SHORT_CHARACTERS
        )
        self._texts = texts
        self._check = check
        self._atomic = atomic
        self._read_limit = read_limit
        self._results: list[TokenizeResult | None] = [None] * len(texts)
        self._missing = len(texts)
        self._next = 0
        self._unfinished: deque[_LongText] = deque()

    @property
    def is_done(self) -> bool:
        """Whether all results are known."""
        return not self._missing

    def results(self) -> list[TokenizeResult]:
        """Return the result of each text, once all are known."""
        return [one for one in self._results if one is not None]

    def take(self, room: int, cut_points: CutPoints | None) -> "list[Piece]":
        """Take what to tokenize next.

        Args:
            room: What they may take together, in characters of a long text.
            cut_points: Where texts may be cut.

        Returns:
            Texts and pieces of texts, to be passed to `add` in this order.

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
                    if self._atomic and self._read_limit is not None:
                        # No text can be too long, so all that can fail fails this check.
                        error.add_others(self._check_the_rest())
                        raise
                    # The traceback's frames refer to this job, which would hold the error: a cycle.
                    self._settle(index, error.with_traceback(None))
                    continue
                if isinstance(checked, Tokenized):
                    self._settle(index, checked)
                    room -= len(checked.ids)
                    continue
                piece = self._begin(index, checked, cut_points)
            else:
                break
            taken.append(piece)
            room -= piece.cost
        return taken

    def _check_the_rest(self) -> list[EngineError]:
        """Return the errors of the texts that were not checked yet, up to `OTHERS_MAX`."""
        refusals: list[EngineError] = []
        while self._next < len(self._texts) and len(refusals) < OTHERS_MAX:
            index = self._next
            self._next += 1
            try:
                self._check(index, self._texts[index])
            except EngineError as error:
                refusals.append(error.with_traceback(None))
        return refusals

    def add(self, pieces: "Sequence[Piece]", ids: Iterable[IntArray]) -> None:
        """Add the token ids, int64 [tokens], of the pieces that were taken."""
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

    def _settle(self, index: int, result: TokenizeResult) -> None:
        self._results[index] = result
        self._missing -= 1

    def _begin(self, index: int, checked: CheckedText, cut_points: CutPoints | None) -> "Piece":
        size, from_end = SLICE_CHARACTERS, False
        if self._read_limit is not None and self._read_limit.pairing.first_of(index) != index:
            size = max(self._read_limit.tokens * _PIECE_CHARACTERS_PER_TOKEN, _PIECE_CHARACTERS_MIN)
            size, from_end = min(size, SLICE_CHARACTERS), self._read_limit.from_end
        # A text that is hardly longer than one piece is not worth another round.
        if cut_points is None or len(checked.text) <= size + size // 2:
            return Piece(index, checked.text, checked.cut, None)
        pieces = Pieces(checked.text, cut_points, from_end=from_end, characters=size)
        return _LongText(index, pieces, characters_cut=checked.cut, from_end=from_end).take()

    def _awaits_first(self, taken: "Sequence[Piece]") -> bool:
        """Whether the length of the pair's first text must be known before going on."""
        first = self._first_of(self._next)
        if first is None or first == self._next or self._results[first] is not None:
            return False
        # A text that is taken whole is known by the time it matters. It is the first one of the
        # job, or the one before.
        return not any(
            piece.position == first and piece.long is None for piece in (*taken[:1], *taken[-1:])
        )

    def _tokens_read(self, index: int) -> float:
        read_limit = self._read_limit
        position = self._first_of(index)
        if read_limit is None or position == index:
            return float("inf")
        first = None if position is None else self._results[position]
        if isinstance(first, Tokenized):
            return max(read_limit.tokens, len(first.ids))
        return read_limit.tokens

    def _first_of(self, index: int) -> int | None:
        return None if self._read_limit is None else self._read_limit.pairing.first_of(index)


class Piece(NamedTuple):
    """The text at a position, or a piece of it."""

    position: int
    text: str
    characters_cut: bool
    long: "_LongText | None"

    @property
    def cost(self) -> int:
        """What it takes to tokenize it, in characters of a long text."""
        return len(self.text) + _TEXT_CHARACTERS


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
        """Take the next piece."""
        return Piece(self._index, self.pieces.take(), self._characters_cut, self)

    def add(self, ids: IntArray) -> None:
        """Add the token ids of that piece, with or without their places in it."""
        if ids.ndim > 1:
            ids[:, 1:] += self.pieces.place
        self._parts.append(ids)
        self.tokens += len(ids)

    def ids(self) -> IntArray:
        """Return the ids of all pieces so far, in the order of the text."""
        return np.concatenate(self._parts[::-1] if self._from_end else self._parts)
