import pytest

from embedgrpc.models.errors import ModelError, ModelUnavailableError


@pytest.mark.parametrize("kind", [ModelError, ModelUnavailableError])
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a/config.json: 'a  b' is wrong", "a/config.json: 'a  b' is wrong"),
        ("cannot be run:\n  Node (x)\n\n  failed\n", "cannot be run: Node (x) failed"),
    ],
)
def test_a_message_is_one_line(kind: type[ModelError], message: str, expected: str) -> None:
    """Line breaks become spaces, and a message of one line is unchanged."""
    assert str(kind(message)) == expected
