"""Finds where a text can be cut so that its pieces have the same tokens as the whole text.

A truncated text needs only its first or last tokens, so only that end should be tokenized. The
tokens are the same only if no step of the tokenizer looks across the cut. A cut is possible before
a single space between two words, before Chinese punctuation if the tokenizer splits there, and
between two Chinese characters if the tokenizer treats each as a word. This module checks whether
all parts of a tokenizer allow this; other tokenizers always get whole texts.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

# Letters and digits of widely used scripts, without combining marks.
_WORD_RANGES = (
    "09",
    "AZ",
    "az",
    "\u00c0\u00d6",  # Latin with accents
    "\u00d8\u00f6",
    "\u00f8\u017f",
    "\u0391\u03a1",  # Greek
    "\u03a3\u03c9",
    "\u0400\u0481",  # Cyrillic
    "\u048a\u052f",
    "\u05d0\u05ea",  # Hebrew
    "\u0621\u063a",  # Arabic
    "\u0641\u064a",
    "\u0904\u0939",  # Devanagari
    "\uac00\ud7a3",  # Hangul
)
_CHINESE = "[\u4e00-\u9fff]"
# Chinese characters and kana that are letters in every version of Unicode.
_EAST_ASIAN_LETTERS = "[\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5]"
_EAST_ASIAN_STOPS = "[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]"
# SentencePiece models write this for a space.
_METASPACE = "\u2581"
_BLANK = re.compile(rf"[\s{_METASPACE}]")

# The splits of known models. Each ends a match before a space that follows a word.
# Sources: the `tokenizer.json` of GPT-2, of Qwen 2 and 3, and of Llama 3.
_SPLIT_REGEXES = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        *(
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            for digits in (r"\p{N}", r"\p{N}{1,3}")
        ),
    }
)
# Normalizers that change each character, with its combining marks, independently.
_LOCAL_NORMALIZERS = frozenset(
    {
        "BertNormalizer",
        "Lowercase",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Nmt",
        "Precompiled",
        "StripAccents",
    }
)
_REPLACING_NORMALIZERS = frozenset({"Precompiled", "Replace"})
# Pre-tokenizers that look at a word and the characters next to it only.
_LOCAL_PRE_TOKENIZERS = frozenset({"Digits", "Punctuation"})
# Those that also split between a letter and punctuation.
_PUNCTUATION_SPLITTERS = frozenset({"BertPreTokenizer", "ByteLevel", "Split", "Whitespace"})
# Those that split at every space and drop it.
_BLANK_SPLITTERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
# How far to search for a cut point.
_SEARCH_CHARACTERS = 65_536


class CutPoints:
    """The places where texts can be cut for one tokenizer.

    Args:
        pattern: A regular expression whose matches end at these places.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern, re.DOTALL)

    def first(self, text: str, start: int, end: int) -> int | None:
        """Return the first cut point from `start` to before `end`, or None."""
        match = self._pattern.search(text, max(start - 1, 0), end)
        return match.end() if match else None


# For tokenizers whose tokens are bytes.
EVERYWHERE = CutPoints(r".(?=.)")


class Pieces:
    """A text that is tokenized piece by piece, from one of its ends.

    Args:
        text: The text.
        cut_points: Where it can be cut.
        from_end: Whether to begin at the end.
        characters: The approximate length of a piece.

    Attributes:
        exhausted: Whether all pieces were taken.
        place: Where the last piece that was taken starts in the text.
    """

    __slots__ = (
        "_characters",
        "_cut_points",
        "_end",
        "_from_end",
        "_start",
        "_text",
        "exhausted",
        "place",
    )

    def __init__(
        self, text: str, cut_points: CutPoints, *, from_end: bool, characters: int
    ) -> None:
        self.exhausted = False
        self._text = text
        self._cut_points = cut_points
        self._from_end = from_end
        self._characters = characters
        self._start = 0
        self._end = len(text)
        self.place = 0

    def take(self) -> str:
        """Return the next piece; it is empty after the last one."""
        start, end = self._start, self._end
        cut = self._cut_from_end() if self._from_end else self._cut_from_start()
        if cut is None:
            self.exhausted = True
            self._start = self._end
            self.place = start
            return self._text[start:end]
        if self._from_end:
            self._end = cut
            self.place = cut
            return self._text[cut:end]
        self._start = cut
        self.place = start
        return self._text[start:cut]

    def _cut_from_start(self) -> int | None:
        begin = self._start + self._characters
        limit = min(self._end, begin + _SEARCH_CHARACTERS)
        return self._cut_points.first(self._text, begin, limit) if begin < self._end else None

    def _cut_from_end(self) -> int | None:
        high, low = self._end, self._end - self._characters
        lowest = max(self._start, low - _SEARCH_CHARACTERS)
        while low > self._start:
            cut = self._cut_points.first(self._text, low, high)
            if cut is not None:
                return cut
            if low == lowest:
                break
            # Whether a place is a cut point depends on the two characters after it.
            high, low = min(low + 2, self._end), max(low - self._characters, lowest)
        return None


def find_cut_points(tokenizer: tokenizers.Tokenizer) -> CutPoints | None:
    """Return the cut points for a tokenizer, or None if it needs whole texts.

    The post-processor does not count.
    """
    normalizers = describe_steps(tokenizer.normalizer, "normalizers")
    pre_tokenizers = describe_steps(tokenizer.pre_tokenizer, "pretokenizers")
    splitter = _find_splitter(pre_tokenizers)
    if not splitter or not all(_is_local(step, splitter) for step in normalizers):
        return None
    if getattr(tokenizer.model, "dropout", None):
        return None
    added = list(tokenizer.get_added_tokens_decoder().values())
    words = "".join(f"{one[0]}-{one[1]}" for one in _WORD_RANGES if _stays(tokenizer, one))
    if not words or not all(_is_apart(token) for token in added):
        return None
    patterns = [f"[{words}](?= [{words}])"]
    # Replacing normalizers may change punctuation, or remove a space.
    if not any(step.get("type") in _REPLACING_NORMALIZERS for step in normalizers):
        names = "".join(one.content for one in added)
        if splitter in _PUNCTUATION_SPLITTERS and not re.search(_EAST_ASIAN_STOPS, names):
            patterns.append(f"{_EAST_ASIAN_LETTERS}(?={_EAST_ASIAN_STOPS})")
        # The normalizer puts spaces around each Chinese character.
        alone = any(step.get("handle_chinese_chars") for step in normalizers)
        if alone and splitter in _BLANK_SPLITTERS and not re.search(_CHINESE, names):
            patterns.append(f"{_CHINESE}(?={_CHINESE})")
    cut_points = CutPoints("|".join(patterns))
    return cut_points if _agrees(tokenizer, cut_points) else None


def describe_steps(component: Any, key: str) -> list[Mapping[str, Any]]:
    """Describe the steps of a normalizer or pre-tokenizer, also inside of sequences."""
    if component is None:
        return []
    return list(_flatten(json.loads(component.__getstate__()), key))


def _flatten(description: Mapping[str, Any], key: str) -> Iterable[Mapping[str, Any]]:
    if description.get("type") != "Sequence":
        yield description
        return
    for step in description[key]:
        yield from _flatten(step, key)


def _find_splitter(steps: Iterable[Mapping[str, Any]]) -> str:
    """Return the step that splits a text at every space; empty if none is certain to."""
    splitter = ""
    for step in steps:
        kind = step.get("type", "")
        if _splits_at_spaces(step):
            splitter = splitter or kind
        elif kind not in _LOCAL_PRE_TOKENIZERS and not (splitter and kind == "ByteLevel"):
            return ""
    return splitter


def _splits_at_spaces(step: Mapping[str, Any]) -> bool:
    match step.get("type"):
        case "ByteLevel":
            return bool(step.get("use_regex", True))
        case "Metaspace":
            return bool(step.get("split", True)) and step.get("replacement") == _METASPACE
        case "Split":
            known = step["pattern"].get("Regex") in _SPLIT_REGEXES
            return known and step["behavior"] == "Isolated" and not step["invert"]
        case kind:
            return kind in _BLANK_SPLITTERS


def _is_local(normalizer: Mapping[str, Any], splitter: str) -> bool:
    match normalizer.get("type"):
        case "Strip":
            # A piece may begin with a space, but never ends with one.
            return not normalizer["strip_left"]
        case "Replace":
            pattern, content = normalizer["pattern"], normalizer["content"]
            if pattern in ({"String": " "}, {"Regex": " {2,}"}):
                # At a cut point there is exactly one space.
                return content == " " or (content == _METASPACE and splitter == "Metaspace")
            literal = pattern.get("String", "")
            return bool(literal) and not any(one.isalnum() or _BLANK.match(one) for one in literal)
        case kind:
            return kind in _LOCAL_NORMALIZERS


def _stays(tokenizer: tokenizers.Tokenizer, ends: str) -> bool:
    """Whether the normalizer keeps each character of a range a word."""
    if tokenizer.normalizer is None:
        return True
    characters = [chr(code) for code in range(ord(ends[0]), ord(ends[1]) + 1)]
    normalized = tokenizer.normalizer.normalize_str(" ".join(characters))
    words = re.split(rf"[ {_METASPACE}]", normalized)
    return len(words) == len(characters) and all(word and not _BLANK.search(word) for word in words)


def _is_apart(token: tokenizers.AddedToken) -> bool:
    """Whether an added token can neither span a cut point nor absorb the space after it."""
    # It may be compared with a normalised text, so each letter may stand for another.
    if re.search(rf"[^\s{_METASPACE}][\s{_METASPACE}]", token.content):
        return False
    return not token.rstrip or re.search(r"[!-/:-@\[-`{-~]\Z", token.content) is not None


def _agrees(tokenizer: tokenizers.Tokenizer, cut_points: CutPoints) -> bool:
    """Try every kind of cut point, in case a part does not do what its name says."""
    words = [chr(code) for one in _WORD_RANGES for code in map(ord, one)]
    text = (
        " ".join(f"{word}{other}" for word in words for other in words) + "\u4e2d\u56fd\u3002" * 8
    )
    whole: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    for from_end in (False, True):
        pieces = Pieces(text, cut_points, from_end=from_end, characters=1)
        found: list[int] = []
        while not pieces.exhausted:
            ids: list[int] = tokenizer.encode(pieces.take(), add_special_tokens=False).ids
            found = ids + found if from_end else found + ids
        if found != whole:
            return False
    return True
