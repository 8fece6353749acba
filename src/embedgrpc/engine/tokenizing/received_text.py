"""Finds what a checked text, whose blanks may have been shortened, is in the text as received."""

import re

from embedgrpc.engine.tokenizing.texts import CheckedText
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.tokenizers.blanks import BLANKS

_BLANKS = re.compile(f"[{BLANKS}]{{2,}}")


def find_received(
    text: str, checked: CheckedText, *, truncation: Truncation, collapsed: bool
) -> tuple[CheckedText, int]:
    """Return the part of a text that makes the same tokens as a checked text.

    Places in it are places in the text. Takes time in proportion to the text.

    Args:
        text: The text as received.
        checked: What `check_text` made of it.
        truncation: The end that was cut, if any.
        collapsed: Whether several blanks were taken for one.

    Returns:
        The part, and the number of characters before it.
    """
    if not checked.cut:
        return CheckedText(text, cut=False), 0
    kept = len(checked.text)
    if truncation is Truncation.START:
        kept = _count_received(text[::-1], kept) if collapsed else kept
        return CheckedText(text[-kept:], cut=True), len(text) - kept
    kept = _count_received(text, kept) if collapsed else kept
    return CheckedText(text[:kept], cut=True), 0


def _count_received(text: str, kept: int) -> int:
    """Return how many characters of a text make `kept` if blanks in a row make one."""
    dropped = 0
    for run in _BLANKS.finditer(text):
        if run.start() - dropped >= kept:
            break
        dropped += run.end() - run.start() - 1
    return min(kept + dropped, len(text))
