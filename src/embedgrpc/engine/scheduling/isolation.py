"""Finds the sequences that make a batch fail, so that the others get their answers.

A batch that fails is run again in halves, and those that fail again in quarters, until what fails
is a single sequence. Rows of an answer that are not finite are treated likewise, for one
sequence's infinity may spoil others of its batch where activations share a scale.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from embedgrpc.engine.errors import (
    BackendUnavailableError,
    DeadlineExpiredError,
    EngineError,
    OverloadedError,
)

Row = TypeVar("Row")
Answer = TypeVar("Answer")

# When so many parts of a batch fail, all of them, the fault is not in the sequences.
_HOPELESS_PARTS = 8
# No fault of a sequence's: running it again would take time that nobody has.
_BLAMELESS = (BackendUnavailableError, DeadlineExpiredError, OverloadedError)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Row, Answer]):
    """What became of some rows.

    Attributes:
        rows: The rows.
        answer: What the model says of them; None where `error` is set.
        error: Why there is no answer.
    """

    rows: Sequence[Row]
    answer: Answer | None
    error: EngineError | None


# Runs rows: gives what came out well, and the rest with the reason.
Run = Callable[[Sequence[Row]], Sequence[Outcome[Row, Answer]]]


def run_isolating(
    run: Run[Row, Answer], rows: Sequence[Row], first: Sequence[Outcome[Row, Answer]]
) -> Iterator[Outcome[Row, Answer]]:
    """Runs what failed again in smaller parts, until each failure is one row's own.

    A backend that is away, or full, or too late, fails at once what is left of the batch. So does
    one that fails eight parts in a row, of which none came out well.

    Args:
        run: Runs rows; does not raise.
        rows: The batch.
        first: What became of it when it was run whole.

    Returns:
        What became of every row, each once. Of n rows at most 2 n are run again.
    """
    parts = [rows]
    outcomes = [first]
    while parts:
        suspects: list[tuple[Sequence[Row], EngineError]] = []
        answered = False
        for part, part_outcomes in zip(parts, outcomes, strict=True):
            for outcome in part_outcomes:
                error = outcome.error
                guilty = len(part) == 1 or isinstance(error, _BLAMELESS)
                if error is None or guilty:
                    answered = answered or error is None
                    yield outcome
                else:
                    suspects.append((outcome.rows, error))
        if len(parts) >= _HOPELESS_PARTS and not answered:
            for left, error in suspects:
                yield Outcome(left, None, error)
            return
        parts = [half for left, _ in suspects for half in _halves(left)]
        outcomes = [run(part) for part in parts]


def _halves(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Divides rows in two; a single one, which failed beside others, is run by itself."""
    middle = (len(rows) + 1) // 2
    return [part for part in (rows[:middle], rows[middle:]) if part]
