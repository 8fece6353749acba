"""Compares sparse vectors."""

from collections.abc import Mapping

from embedgrpc.models.graphs.outputs import VOCABULARY_WEIGHTS
from tests.models.runner import Runner, expected


def assert_same_weights(
    ours: Mapping[int, float], theirs: Mapping[str, float], tolerance: float
) -> None:
    """Compare sparse vectors; an entry below the tolerance may be missing."""
    reference = {int(token): weight for token, weight in theirs.items()}
    assert reference
    worst = max(
        abs(ours.get(token, 0.0) - reference.get(token, 0.0)) for token in {*ours, *reference}
    )
    assert worst <= tolerance


def assert_reference(runner: Runner, name: str = "splade-bert") -> None:
    """Compare the sparse vectors of all texts of a fixture with the reference."""
    reference = expected(name)
    sequences = runner.tokenize(reference["texts"])
    weights = runner.run(sequences, VOCABULARY_WEIGHTS)
    compared = 0
    for row, sequence, theirs in zip(
        weights, sequences, reference["outputs"]["default"]["weights"], strict=True
    ):
        # Families that number real tokens only give no position to a padding token in a text.
        if runner.properties.pad_token_id not in sequence.input_ids:
            assert_same_weights(dict(enumerate(row.tolist())), theirs, reference["tolerance"])
            compared += 1
    assert compared >= len(sequences) // 2
