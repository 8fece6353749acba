import pytest

from embedgrpc.server.contract.names import list_names, show_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("foo", "'foo'"),
        ("", "''"),
        ("modèle/模型", "'modèle/模型'"),
        ("a\nb\0", r"'a\nb\x00'"),
        ("\u202eevil\x1b[31m", r"'\u202eevil\x1b[31m'"),
        ("n" * 64, f"'{'n' * 64}'"),
        ("n" * 65, f"'{'n' * 64}...'"),
        # No escape is cut in half.
        ("\0" * 17, "'" + r"\x00" * 16 + "...'"),
        ("n" * 63 + "\0", f"'{'n' * 63}...'"),
    ],
)
def test_a_name_is_shown_escaped_and_bounded(name: str, shown: str) -> None:
    """At most 64 characters of a name are shown, none of which can move a terminal's cursor."""
    assert show_name(name) == shown


def test_a_list_of_names_is_bounded() -> None:
    """The first 8 names are listed, each bounded, and the others counted."""
    assert list_names([]) == "none"
    assert list_names({"query": "", "document": ""}) == "query, document"
    assert list_names([str(number) for number in range(8)]) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert list_names([str(number) for number in range(30)]).endswith("6, 7 and 22 more")
    assert len(list_names(["n" * 1000] * 1000)) < 600
