import time

import pytest

from embedgrpc.engine.tokenizing.sentences import find_sentences


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("No end", ["No end"]),
        ("3.5 of v1.2 are in. Yes", ["3.5 of v1.2 are in.", "Yes"]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("Wait... what?! Yes.", ["Wait...", "what?!", "Yes."]),
        (
            "\u5357\u3002\u5317\uff01\u300c\u6771\u3002\u300d\u897f",
            ["\u5357\u3002", "\u5317\uff01", "\u300c\u6771\u3002\u300d", "\u897f"],
        ),
        ("A title\n\nA text\nof two lines.  \n", ["A title", "A text\nof two lines."]),
        (" \n\n . ", ["."]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences_end_where_punctuation_says(text: str, wanted: list[str]) -> None:
    """Behind stops before a blank, behind wide stops, and at empty lines."""
    assert [text[start:end] for start, end in find_sentences(text, 1)] == wanted


def test_sentences_are_grouped() -> None:
    """A group goes from the start of its first to the end of its last sentence."""
    text = "A. B. C."
    assert find_sentences(text, 2).tolist() == [[0, 5], [6, 8]]


@pytest.mark.parametrize("part", ["!", ".'", "\u3002", "\n ", "\n", ". ", '"'])
def test_no_text_takes_long(part: str) -> None:
    """The time grows with the length, and not with its square."""
    began = time.process_time()
    find_sentences(part * 200_000 + "x", 1)
    assert time.process_time() - began < 10
