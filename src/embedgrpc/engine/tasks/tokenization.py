"""Tokenizes, counts tokens and decodes, without running the model."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from embedgrpc.engine.errors import (
    DeadlineExpiredError,
    EngineError,
    InputTooLongError,
    InvalidRequestError,
    UnsupportedError,
)
from embedgrpc.engine.tokenizing.jobs import SLICE_CHARACTERS, Tokenization, TokenizeResult
from embedgrpc.engine.tokenizing.texts import CheckedText
from embedgrpc.engine.tokenizing.threads import TokenizingThreads
from embedgrpc.engine.work import Call
from embedgrpc.libraries.arrays import IntArray
from embedgrpc.models.tokenizers.cut_points import Pieces
from embedgrpc.models.tokenizers.tokenized_text import TokenizedText, assemble
from embedgrpc.models.tokenizers.tokenizer import Tokenizer

# To cut so many characters takes less than a millisecond.
_FEW_CHARACTERS = 65_536
# To decode so many takes less than a millisecond.
_FEW_IDS = 512
# More than the longest models read.
DECODED_IDS_MAX = 65_536


class TextTokenizer:
    """Tokenizes texts as a model does. On threads that callers share fairly.

    Args:
        tokenizer: The model's tokenizer.
        counting: Tokenizes without places; shared with the texts that are embedded.
        locating: Tokenizes with places; None if the model tokenizes on its own.
        max_characters: Most characters that are tokenized in one go.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        counting: TokenizingThreads,
        locating: TokenizingThreads | None,
        max_characters: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._counting = counting
        self._locating = locating
        self._max_characters = max_characters
        # A piece ends at the first place behind this length where a text may be cut.
        self._piece_characters = min(SLICE_CHARACTERS, max(max_characters // 2, 1))

    @property
    def is_available(self) -> bool:
        """Whether the model's tokenizer is here."""
        return self._locating is not None

    async def count(
        self, texts: Sequence[str], call: Call, *, prompt: str, with_special: bool
    ) -> list[int]:
        """Count the tokens of each text, before truncation.

        Args:
            texts: The texts.
            call: For whom.
            prompt: Put in front of each text.
            with_special: Whether special tokens count.

        Raises:
            EngineError: A text is too long, or the time is over.
        """
        self._require_tokenizer()
        pieces = await self._cut(texts, prompt)
        counts = [self._tokenizer.special_token_count if with_special else 0] * len(texts)
        for piece, ids in zip(pieces, await self._run(self._counting, pieces, call), strict=True):
            counts[piece.index] += len(ids)
        return counts

    async def tokenize(
        self, texts: Sequence[str], call: Call, *, prompt: str, with_special: bool
    ) -> list[TokenizedText]:
        """Tokenize texts, without truncation. Arguments and errors as for `count`."""
        locating = self._require_tokenizer()
        pieces = await self._cut(texts, prompt)
        found = await self._run(locating, pieces, call)
        special = self._tokenizer.special_ids if with_special else None

        def put_together() -> list[TokenizedText]:
            located: list[list[IntArray]] = [[] for _ in texts]
            for piece, rows in zip(pieces, found, strict=True):
                rows[:, 1:] += piece.start
                located[piece.index].append(rows)
            return [assemble(rows, special, prompt_characters=len(prompt)) for rows in located]

        # A million tokens have 24 MB of places.
        return await asyncio.to_thread(put_together)

    async def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of some tokens.

        Args:
            ids: Their ids.
            skip_special: Whether to leave out special tokens.

        Raises:
            InvalidRequestError: There are too many, or the vocabulary lacks one.
            UnsupportedError: The model tokenizes on its own.
        """
        if len(ids) > DECODED_IDS_MAX:
            raise InvalidRequestError(
                f"ids has {len(ids)} ids; the limit is {DECODED_IDS_MAX}", field="ids"
            )
        self._require_tokenizer()
        if len(ids) <= _FEW_IDS:
            return self._decode(ids, skip_special=skip_special)
        return await asyncio.to_thread(self._decode, ids, skip_special=skip_special)

    def _decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        locator = self._tokenizer.locator
        assert locator is not None  # noqa: S101 - checked by the caller
        unknown = locator.find_unknown(ids)
        if unknown is not None:
            raise InvalidRequestError(
                f"ids[{unknown}] is {ids[unknown]}; the model's vocabulary has no such token",
                field=f"ids[{unknown}]",
            )
        return locator.decode(ids, skip_special=skip_special)

    def entries(self, tokenized: TokenizedText) -> list[str]:
        """Return the vocabulary entry of each token."""
        locator = self._tokenizer.locator
        return [] if locator is None else locator.entries(tokenized.ids.tolist())

    def _require_tokenizer(self) -> TokenizingThreads:
        if self._locating is None:
            raise UnsupportedError("the model tokenizes on its own", field="model")
        return self._locating

    async def _cut(self, texts: Sequence[str], prompt: str) -> "list[_Piece]":
        """Cut texts into pieces with the same tokens, so that no other caller waits for long."""
        if sum(map(len, texts)) + len(prompt) * len(texts) <= _FEW_CHARACTERS:
            return self._pieces(texts, prompt)
        return await asyncio.to_thread(self._pieces, texts, prompt)

    def _pieces(self, texts: Sequence[str], prompt: str) -> "list[_Piece]":
        pieces: list[_Piece] = []
        for index, text in enumerate(texts):
            whole = prompt + text
            first = len(pieces)
            if len(whole) <= self._piece_characters or self._tokenizer.cut_points is None:
                pieces.append(_Piece(index, 0, whole))
            else:
                cutting = Pieces(
                    whole,
                    self._tokenizer.cut_points,
                    from_end=False,
                    characters=self._piece_characters,
                )
                start = 0
                while not cutting.exhausted:
                    pieces.append(_Piece(index, start, cutting.take()))
                    start += len(pieces[-1].text)
            longest = max(len(one.text) for one in pieces[first:])
            if longest > self._max_characters + len(prompt):
                raise InputTooLongError(
                    f"texts[{index}] has {longest} characters that can only be tokenized together;"
                    f" the limit is {self._max_characters}",
                    field=f"texts[{index}]",
                    metadata={
                        "label": "CHARACTERS",
                        "characters": str(longest),
                        "maxCharacters": str(self._max_characters),
                    },
                )
        return pieces

    async def _run(
        self, threads: TokenizingThreads, pieces: "Sequence[_Piece]", call: Call
    ) -> list[IntArray]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[IntArray]] = loop.create_future()

        def succeed(ids: list[IntArray]) -> None:
            if not found.done():
                found.set_result(ids)

        def fail(error: EngineError) -> None:
            if not found.done():
                found.set_exception(error)

        def finish(outcomes: list[TokenizeResult]) -> None:
            """Go through the outcomes of many texts, on the tokenizing thread."""
            ids = []
            for outcome in outcomes:
                if isinstance(outcome, EngineError):
                    _call_soon(loop, fail, outcome)
                    return
                ids.append(outcome.ids)
            _call_soon(loop, succeed, ids)

        threads.submit(
            Tokenization(
                texts=[piece.text for piece in pieces],
                check=lambda _, text: CheckedText(text, cut=False),
                work_class=call.work_class,
                caller=call.caller,
                atomic=False,
                read_limit=None,
                wanted=lambda: not found.done(),
                done=finish,
                failed=lambda error: _call_soon(loop, fail, error),
            )
        )
        left_s = call.deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(left_s, 0) if math.isfinite(left_s) else None):
                return await found
        except TimeoutError:
            raise DeadlineExpiredError("the deadline passed before the answer") from None
        finally:
            found.cancel()


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a text.

    Attributes:
        index: Which text.
        start: Where it starts in the text, in characters.
        text: The part.
    """

    index: int
    start: int
    text: str


def _call_soon(loop: asyncio.AbstractEventLoop, callback: object, argument: object) -> None:
    loop.call_soon_threadsafe(callback, argument)  # type: ignore[arg-type]
