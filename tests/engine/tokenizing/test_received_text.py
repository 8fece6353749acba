import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedgrpc.engine.tokenizing.received_text import find_received
from embedgrpc.engine.tokenizing.texts import check_text
from embedgrpc.models.kinds import Truncation


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
@given(
    parts=st.lists(st.sampled_from(["a", "bc", " ", "\t", "\n  ", "\u3000", "é"]), max_size=60),
    limit=st.integers(2, 40),
)
def test_the_received_part_is_what_was_checked(
    truncation: Truncation, parts: list[str], limit: int
) -> None:
    """Up to blanks, it is the checked text; and it stands where the result says."""
    text = "x" + "".join(parts) + "x"
    checked = check_text(
        text, max_characters=limit, truncation=truncation, field="text", collapses_blanks=True
    )
    received, before = find_received(text, checked, truncation=truncation, collapsed=True)
    assert text[before : before + len(received.text)] == received.text
    assert received.text.split() == checked.text.split()
    assert received.cut == checked.cut
    if truncation is Truncation.END:
        assert before == 0
    else:
        assert before + len(received.text) == len(text)
