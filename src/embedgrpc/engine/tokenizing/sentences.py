"""Finds the sentences of a text by their punctuation."""

import re

import numpy as np

from embedgrpc.libraries.arrays import IntArray

# A sentence ends behind a full stop, question mark or exclamation mark that closing quotes and
# brackets may follow, if a blank or the end of the text comes next; behind those of Chinese and
# Japanese, which need no blank; and at an empty line. Each run is read once: the look-behind keeps
# the pattern from starting again inside it.
_STOPS = ".!?\u2026\u0964\u061f\u06d4"
_WIDE_STOPS = "\u3002\uff01\uff1f\uff0e"
_CLOSING = "\"'\u2019\u201d\u00bb)\\]"
_WIDE_CLOSING = "\u300d\u300f\u2019\u201d\uff09)"
_END = re.compile(
    f"(?<![{_STOPS}])[{_STOPS}]++[{_CLOSING}]*+(?=\\s|\\Z)"
    f"|(?<![{_WIDE_STOPS}])[{_WIDE_STOPS}]++[{_WIDE_CLOSING}]*+"
    r"|\n[^\S\n]*+\n"
)


def find_sentences(text: str, count: int) -> IntArray:
    """Return where groups of sentences start and end, without the blanks around them.

    Args:
        text: The text.
        count: Sentences of a group; the last one may have fewer.

    Returns:
        int64 [groups, 2], in characters.
    """
    spans: list[tuple[int, int]] = []
    begin = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        sentence = text[begin:end]
        stripped = sentence.strip()
        if stripped:
            start = begin + len(sentence) - len(sentence.lstrip())
            spans.append((start, start + len(stripped)))
        begin = end
    groups = [(group[0][0], group[-1][1]) for group in _grouped(spans, count)]
    return np.array(groups, np.int64).reshape(-1, 2)


def _grouped(spans: list[tuple[int, int]], count: int) -> list[list[tuple[int, int]]]:
    return [spans[start : start + count] for start in range(0, len(spans), count)]
