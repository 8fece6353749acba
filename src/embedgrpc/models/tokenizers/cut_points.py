"""Finds where a text may be cut so that its parts have, one after the other, its own tokens.

Of a long text only the first or the last tokens are read, so only that end of it should be
tokenized. That gives the same tokens only where nothing that a tokenizer does reaches across the
cut: a cut is made in front of a single space between two words, in front of Chinese punctuation
where a tokenizer splits there, and between two Chinese characters where it takes each by itself.
Whether a tokenizer is made of parts that allow
this is looked up here; any other is given whole texts.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

# Letters and digits of widely used scripts. None of them is a mark that would join a neighbour.
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
# What SentencePiece models write for a space.
_METASPACE = "\u2581"
_BLANK = re.compile(rf"[\s{_METASPACE}]")

# Splits of known models, each of which ends a match before a space that follows a word.
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
# Normalizers that change each character, or each character with the marks upon it, alone.
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
# Pre-tokenizers that look at no more than a word and what is right next to it.
_LOCAL_PRE_TOKENIZERS = frozenset({"Digits", "Punctuation"})
# Those that split between a letter and punctuation, too.
_PUNCTUATION_SPLITTERS = frozenset({"BertPreTokenizer", "ByteLevel", "Split", "Whitespace"})
# Those that split at every space, and drop it.
_BLANK_SPLITTERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
# How far to look for a place to cut.
_SEARCH_CHARACTERS = 65_536


class CutPoints:
    """The places where texts may be cut for one tokenizer.

    Args:
        pattern: Matches right before each of them.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern, re.DOTALL)

    def first(self, text: str, start: int, end: int) -> int | None:
        """Finds the first place in a part of a text, or None where there is none.

        Args:
            text: The whole text.
            start: Where the part begins.
            end: Where it ends; a place is before it.
        """
        match = self._pattern.search(text, max(start - 1, 0), end)
        return match.end() if match else None


# Tokens of bytes depend on nothing else.
EVERYWHERE = CutPoints(r".(?=.)")


class Pieces:
    """A text that is tokenized piece by piece, from one of its ends.

    Args:
        text: The text.
        cut_points: Where it may be cut.
        from_end: Whether to begin with its end.
        characters: About how long a piece is.

    Attributes:
        exhausted: Whether all of it was taken.
    """

    __slots__ = ("_characters", "_cut_points", "_end", "_from_end", "_start", "_text", "exhausted")

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

    def take(self) -> str:
        """Takes the next piece; once only after the text is exhausted it is empty."""
        start, end = self._start, self._end
        cut = self._cut_from_end() if self._from_end else self._cut_from_start()
        if cut is None:
            self.exhausted = True
            self._start = self._end
            return self._text[start:end]
        if self._from_end:
            self._end = cut
            return self._text[cut:end]
        self._start = cut
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
            # A place is told by the two characters that follow it.
            high, low = min(low + 2, self._end), max(low - self._characters, lowest)
        return None


def find_cut_points(tokenizer: tokenizers.Tokenizer) -> CutPoints | None:
    """Finds where texts may be cut for a tokenizer.

    Args:
        tokenizer: As it is used, without its post-processor.

    Returns:
        The places, or None where only whole texts surely give the right tokens.
    """
    normalizers = _steps(tokenizer.normalizer, "normalizers")
    pre_tokenizers = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    splitter = _find_splitter(pre_tokenizers)
    if not splitter or not all(_is_local(step, splitter) for step in normalizers):
        return None
    if getattr(tokenizer.model, "dropout", None):
        return None
    added = list(tokenizer.get_added_tokens_decoder().values())
    words = "".join(f"{one[0]}-{one[1]}" for one in _WORD_RANGES if _stays(tokenizer, one))
    if not words or not all(_is_apart(token, words) for token in added):
        return None
    patterns = [f"[{words}](?= [{words}])"]
    # These may make other characters of punctuation, or join what stands between two spaces.
    if not any(step.get("type") in _REPLACING_NORMALIZERS for step in normalizers):
        names = "".join(one.content for one in added)
        if splitter in _PUNCTUATION_SPLITTERS and not re.search(_EAST_ASIAN_STOPS, names):
            patterns.append(f"{_EAST_ASIAN_LETTERS}(?={_EAST_ASIAN_STOPS})")
        # With a space on either side of each of them.
        alone = any(step.get("handle_chinese_chars") for step in normalizers)
        if alone and splitter in _BLANK_SPLITTERS and not re.search(_CHINESE, names):
            patterns.append(f"{_CHINESE}(?={_CHINESE})")
    cut_points = CutPoints("|".join(patterns))
    return cut_points if _agrees(tokenizer, cut_points) else None


def _steps(component: Any, key: str) -> list[Mapping[str, Any]]:
    """Describes the steps of a normalizer or pre-tokenizer, those inside of sequences too."""
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
    """Names the step that splits a text at every space; empty where there is none to rely on."""
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
            # In front of a border there is no space.
            return not normalizer["strip_left"]
        case "Replace":
            pattern, content = normalizer["pattern"], normalizer["content"]
            if pattern in ({"String": " "}, {"Regex": " {2,}"}):
                # At a border stands one space.
                return content == " " or (content == _METASPACE and splitter == "Metaspace")
            literal = pattern.get("String", "")
            return bool(literal) and not any(one.isalnum() or _BLANK.match(one) for one in literal)
        case kind:
            return kind in _LOCAL_NORMALIZERS


def _stays(tokenizer: tokenizers.Tokenizer, ends: str) -> bool:
    """Whether each character of a range becomes part of a word, and nothing else."""
    if tokenizer.normalizer is None:
        return True
    characters = [chr(code) for code in range(ord(ends[0]), ord(ends[1]) + 1)]
    normalized = tokenizer.normalizer.normalize_str(" ".join(characters))
    words = re.split(rf"[ {_METASPACE}]", normalized)
    return len(words) == len(characters) and all(word and not _BLANK.search(word) for word in words)


def _is_apart(token: tokenizers.AddedToken, words: str) -> bool:
    """Whether an added token can neither span a border nor take the space behind it."""
    if re.search(rf"[{words}][\s{_METASPACE}]", token.content):
        return False
    return not (token.rstrip and re.search(rf"[{words}]\Z", token.content))


def _agrees(tokenizer: tokenizers.Tokenizer, cut_points: CutPoints) -> bool:
    """Tries cut_points of every kind, in case a part of the tokenizer is not what it is called."""
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
