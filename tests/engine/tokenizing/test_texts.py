import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest

from embedgrpc.engine.errors import EmptyInputError, InputTooLongError, Reason
from embedgrpc.engine.tokenizing.texts import CheckedText, _has_visible, check_text
from embedgrpc.models.kinds import Truncation

# By Unicode category: an invisible character of each, and of each one that may be visible.
INVISIBLE = {
    "Cc": "\x00\t\n\r\x1f\x7f\x85",
    "Cf": "\u00ad\u200b\u200d\u200e\u2060\ufeff\U000e0001",
    "Zs": " \u00a0\u2003\u3000",
    "Zl": "\u2028",
    "Zp": "\u2029",
}
VISIBLE = {
    "Lu": "A",
    "Ll": "\u00df",
    "Lt": "\u01c5",
    "Lm": "\u02b0",
    "Lo": "\u4e00\u05d0\u0e01",
    "Mn": "\u0301",
    "Mc": "\u0903",
    "Me": "\u20dd",
    "Nd": "7\u0667",
    "Nl": "\u2167",
    "No": "\u00bd",
    "Pc": "_",
    "Pd": "-",
    "Ps": "(",
    "Pe": ")",
    "Pi": "\u00ab",
    "Pf": "\u00bb",
    "Po": "!",
    "Sm": "+",
    "Sc": "\u20ac",
    "Sk": "^",
    "So": "\u2603\U0001f600",
    "Co": "\ue000",
    "Cn": "\u0378",
}


def check(
    text: str, *, max_characters: int = 100, truncation: Truncation = Truncation.END
) -> CheckedText:
    """Check the fourth text of a request."""
    return check_text(text, max_characters=max_characters, truncation=truncation, field="texts[3]")


def one_by_one(table: dict[str, str]) -> list[object]:
    """Return every character of a table, named by its category."""
    return [
        pytest.param(one, id=f"{category}-{ord(one):04x}")
        for category, characters in table.items()
        for one in characters
    ]


@pytest.mark.parametrize("character", one_by_one(INVISIBLE))
def test_invisible_character_is_no_text(character: str) -> None:
    """White space, controls and format characters make no text, alone or in numbers."""
    for text in (character, character * 99, f" \u200b{character}\n"):
        with pytest.raises(EmptyInputError) as refused:
            check(text)
        assert refused.value.reason is Reason.EMPTY_INPUT
        assert refused.value.field == "texts[3]"
        assert f"{len(text)} characters" in refused.value.message


@pytest.mark.parametrize("character", one_by_one(VISIBLE))
def test_visible_character_is_a_text(character: str) -> None:
    """A character that may be visible makes a text, at any position."""
    for text in (character, f" \u200b{character}", f"{' ' * 80}{character}"):
        assert check(text) == CheckedText(text, cut=False)


def test_nothing_is_no_text() -> None:
    """An empty string is refused."""
    with pytest.raises(EmptyInputError):
        check("")


def test_visibility_is_what_unicode_says() -> None:
    """Of all characters, exactly the invisible ones are known as such."""
    wrong = [
        hex(code)
        for code in range(sys.maxunicode + 1)
        if _has_visible(chr(code))
        != (unicodedata.category(chr(code)) not in ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs"))
    ]
    assert not wrong


def thread_s(work: Callable[[], object]) -> float:
    """Return the CPU time of some work; the least of five runs, because noise only adds."""
    times = []
    for _ in range(5):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times)


def refuse(text: str, **changes: Any) -> str:
    """Check a text that must be refused, and return the reason."""
    with pytest.raises(EmptyInputError) as refused:
        check(text, **changes)
    return refused.value.message


@pytest.mark.parametrize("flood", ["\u200b", "\u2003\u200b\u3000"])
def test_a_flood_of_invisible_characters_is_not_looked_up_one_by_one(flood: str) -> None:
    """Searching megabytes of blanks is far cheaper than making a string of each character.

    Looking each of them up would take at least that long.
    """
    text = flood * (2_000_000 // len(flood))
    one_by_one = thread_s(lambda: set(text))
    assert thread_s(lambda: refuse(text, max_characters=len(text))) < one_by_one / 2


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
def test_what_is_not_read_costs_nothing(truncation: Truncation) -> None:
    """Of megabytes of blanks only the part that would be tokenized is searched."""
    text = "\u200b" * 2_000_000
    all_of_it = thread_s(lambda: refuse(text, max_characters=len(text)))
    message = ""

    def work() -> None:
        nonlocal message
        message = refuse(text, max_characters=20_000, truncation=truncation)

    assert thread_s(work) < all_of_it / 10
    assert "20000, which are read" in message


def test_what_is_read_must_be_visible() -> None:
    """A text whose visible part is cut away is empty; one whose visible part is kept is not."""
    text = " " * 100 + "visible"
    assert check(text, truncation=Truncation.START).text.endswith("visible")
    with pytest.raises(EmptyInputError, match="107 characters, none of the first 100"):
        check(text, truncation=Truncation.END)
    with pytest.raises(InputTooLongError):
        check(text, truncation=Truncation.NONE)


def test_a_visible_character_is_found_far_behind_invisible_ones() -> None:
    """A blank part of any length is accepted before a visible character that is kept."""
    text = "\u200b" * 200_000 + "x"
    assert check(text, max_characters=200_001) == CheckedText(text, cut=False)


@pytest.mark.parametrize(
    ("truncation", "expected"), [(Truncation.END, "abcde"), (Truncation.START, "fghij")]
)
def test_huge_text_is_cut(truncation: Truncation, expected: str) -> None:
    """A text with too many characters keeps the right end, up to the limit."""
    checked = check("abcdefghij", max_characters=5, truncation=truncation)
    assert checked == CheckedText(expected, cut=True)


@pytest.mark.parametrize("truncation", Truncation)
def test_text_at_the_limit_is_whole(truncation: Truncation) -> None:
    """A text of exactly the maximum is not cut."""
    assert check("abcde", max_characters=5, truncation=truncation) == CheckedText(
        "abcde", cut=False
    )


def test_huge_text_that_may_not_be_cut_is_refused() -> None:
    """The error names the field, the limit and the size, but not the text."""
    with pytest.raises(InputTooLongError) as refused:
        check("abcdef", max_characters=5, truncation=Truncation.NONE)
    assert refused.value.message == "texts[3] has 6 characters; the limit is 5"
    assert refused.value.field == "texts[3]"
    assert refused.value.metadata == {
        "label": "CHARACTERS",
        "characters": "6",
        "maxCharacters": "5",
    }


def collapse(text: str, truncation: Truncation) -> CheckedText:
    """Check a text for a tokenizer that takes several blanks for one."""
    return check_text(
        text, max_characters=10, truncation=truncation, field="texts[3]", collapses_blanks=True
    )


@pytest.mark.parametrize("blanks", [" " * 20_000, "\n\t" * 70_000, " \u3000\u00a0" * 50_000])
def test_blanks_that_are_dropped_do_not_count(blanks: str) -> None:
    """Text before or after many blanks is read, whichever end is cut."""
    for truncation in Truncation:
        assert collapse(f"{blanks}words", truncation) == CheckedText(" words", cut=False)
        assert collapse(f"words{blanks}", truncation) == CheckedText("words ", cut=False)
        assert collapse(f"a{blanks}b{blanks}c", truncation) == CheckedText("a b c", cut=False)
    assert collapse(f"{blanks}abcdefghijk", Truncation.END) == CheckedText(" abcdefghi", cut=True)
    assert collapse(f"abcdefghijk{blanks}", Truncation.START) == CheckedText("cdefghijk ", cut=True)
    with pytest.raises(InputTooLongError):
        collapse(f"{blanks}abcdefghijk", Truncation.NONE)
