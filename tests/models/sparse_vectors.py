"""Compares sparse vectors."""

from collections.abc import Mapping


def assert_same_weights(
    ours: Mapping[int, float], theirs: Mapping[str, float], tolerance: float
) -> None:
    """Compares sparse vectors; an entry below the tolerance may be missing."""
    reference = {int(token): weight for token, weight in theirs.items()}
    assert reference
    worst = max(
        abs(ours.get(token, 0.0) - reference.get(token, 0.0)) for token in {*ours, *reference}
    )
    assert worst <= tolerance
