"""Texts whose vectors, and whose faults, are known before they are sent."""

import hashlib
import math
import random
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.folder import properties
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.sources import source
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.server.hash_backend import WIDTH
from tests.server.service import EMBED

_NOTHING = ("", "  ", "\t\n", "\u200b")
# Texts that were taken last are in flight now: those are the ones to send once more.
_RECENT_SHARE = 0.2
_RECENT_TEXTS = 96
# And a few everybody asks for, until others come into fashion.
_FASHIONABLE_SHARE = 0.15
_FASHIONABLE_TEXTS = 8
_FASHION_CHANGES = 0.003
_LIMIT_SHARE = 0.02
_OVER_LONG_SHARE = 0.02
_OVER_LONG_WORDS_MAX = 40
_UPPER_SHARE = 0.1


class Kind(Enum):
    """What the backend does when it meets a text; all but the first and the last have a marker."""

    PLAIN = auto()
    # It takes its time.
    SLOW = auto()
    # The run fails.
    BROKEN = auto()
    # Its own row is NaN.
    SPOILT = auto()
    # Every row of its batch is NaN.
    INFECTIOUS = auto()
    # The backend raises what it should not.
    FAULTY = auto()
    # The text holds nothing, and never comes that far.
    BLANK = auto()


# How many of all new texts are odd. Eight guilty ones in one batch would pass for a backend that
# is down, and innocents would fail with them: these shares make that once in many millions.
_SHARES = {
    Kind.SLOW: 0.003,
    Kind.BROKEN: 0.001,
    Kind.SPOILT: 0.001,
    Kind.INFECTIOUS: 0.0007,
    Kind.FAULTY: 0.0007,
    Kind.BLANK: 0.0005,
}
_MARKED = tuple(kind for kind in _SHARES if kind is not Kind.BLANK)


@dataclass(frozen=True, slots=True)
class Text:
    """A text and its expected outcome.

    Attributes:
        text: What is sent.
        kind: What the backend does about it.
        digest: Of the tokens, cut to the model's limit; the answer is made of it.
        tokens: How many tokens those are.
        over_long: Whether it had to be cut.
    """

    text: str
    kind: Kind
    digest: bytes
    tokens: int
    over_long: bool


def digest_of(ids: IntArray) -> bytes:
    """Return a digest of a sequence, int64 [tokens]."""
    return hashlib.blake2b(ids.tobytes(), digest_size=WIDTH).digest()


def vector_of(digest: bytes) -> FloatArray:
    """What the backend answers for a sequence, float32 [WIDTH]: above 0 and at most 1."""
    values = np.frombuffer(digest, np.uint8).astype(np.float32)
    return (values + np.float32(1)) / np.float32(256)


class Vocabulary:
    """The words of the fixture's model that are one token each.

    Attributes:
        markers: By the token that begins a text, what the backend does about it.
    """

    def __init__(self) -> None:
        files = source.resolve(EMBED.source)
        described = properties.read(files)
        tokenizer = Tokenizer.load(described)
        known = (described.transformer_folder / "vocab.txt").read_text("utf-8").split("\n")
        words = [word for word in known if word.isascii() and word.isalpha()]
        pairs = list(zip(words, tokenizer.encode(words), strict=True))
        single = [(word, int(ids[0])) for word, ids in pairs if len(ids) == 1]
        # From the end of the list: the health check's text begins with none of these.
        marks = dict(zip(_MARKED, single[-len(_MARKED) :], strict=True))
        self.markers = {token: kind for kind, (_, token) in marks.items()}
        self._marker_words = {kind: word for kind, (word, _) in marks.items()}
        self._words = [word for word, _ in single[: -len(_MARKED)]]
        self._ids = dict(single)
        frame = tokenizer.build_sequence(
            np.empty(0, np.int64), max_tokens=described.max_tokens, truncation=Truncation.END
        )
        self._begin, self._end = (int(one) for one in frame.input_ids)
        self.words_max = described.max_tokens - len(frame.input_ids)

    def make(self, kind: Kind, words: int, choices: random.Random, *, upper: bool = False) -> Text:
        """Return a text of that many words."""
        if kind is Kind.BLANK:
            return Text(choices.choice(_NOTHING), kind, b"", 0, over_long=False)
        picked = choices.choices(self._words, k=words)
        if kind in self._marker_words:
            picked[0] = self._marker_words[kind]
        read = [self._ids[word] for word in picked[: self.words_max]]
        ids = np.array([self._begin, *read, self._end], np.int64)
        text = " ".join(picked)
        return Text(
            text=text.upper() if upper else text,
            kind=kind,
            digest=digest_of(ids),
            tokens=len(ids),
            over_long=words > self.words_max,
        )


class TextSource:
    """A source of texts of all lengths and kinds, many of them equal to others in flight.

    Args:
        vocabulary: What they are made of.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._recent: deque[Text] = deque(maxlen=_RECENT_TEXTS)
        self._fashionable: deque[Text] = deque(maxlen=_FASHIONABLE_TEXTS)
        self._kinds = list(Kind)
        self._weights = [_SHARES.get(kind, 1 - sum(_SHARES.values())) for kind in Kind]

    def take(self, count: int, choices: random.Random) -> list[Text]:
        """Return that many texts."""
        return [self._one(choices) for _ in range(count)]

    def _one(self, choices: random.Random) -> Text:
        again = choices.random()
        if self._recent and again < _RECENT_SHARE:
            return choices.choice(self._recent)
        if self._fashionable and again < _RECENT_SHARE + _FASHIONABLE_SHARE:
            return choices.choice(self._fashionable)
        (kind,) = choices.choices(self._kinds, self._weights)
        words = self._word_count(choices)
        text = self._vocabulary.make(kind, words, choices, upper=choices.random() < _UPPER_SHARE)
        self._recent.append(text)
        if kind is Kind.PLAIN and choices.random() < _FASHION_CHANGES:
            self._fashionable.append(text)
        return text

    def _word_count(self, choices: random.Random) -> int:
        limit = self._vocabulary.words_max
        odd = choices.random()
        if odd < _LIMIT_SHARE:
            return limit
        if odd < _LIMIT_SHARE + _OVER_LONG_SHARE:
            return limit + choices.randint(1, _OVER_LONG_WORDS_MAX)
        # Short ones are the most, as in life.
        return int(math.exp(choices.uniform(0, math.log(limit))))
