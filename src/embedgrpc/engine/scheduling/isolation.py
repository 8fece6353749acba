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

Item = TypeVar("Item")
Output = TypeVar("Output")

# When so many parts of a batch fail, all of them, the fault is not in the sequences.
_HOPELESS_PARTS = 8
# No fault of a sequence's: running it again would take time that nobody has.
_BLAMELESS = (BackendUnavailableError, DeadlineExpiredError, OverloadedError)


@dataclass(frozen=True, slots=True)
class RunResult(Generic[Item, Output]):
    """What became of some items.

    Attributes:
        items: The items.
        answer: What the model says of them; None where `error` is set.
        error: Why there is no answer.
    """

    items: Sequence[Item]
    output: Output | None
    error: EngineError | None


# Runs items: gives what came out well, and the rest with the reason.
Run = Callable[[Sequence[Item]], Sequence[RunResult[Item, Output]]]


def run_isolating(
    run: Run[Item, Output],
    items: Sequence[Item],
    first: Sequence[RunResult[Item, Output]],
) -> Iterator[RunResult[Item, Output]]:
    """Runs what failed again in smaller parts, until each failure is one item's own.

    A backend that is away, or full, or too late, fails at once what is left of the batch. So does
    one that fails eight parts in a row, of which none came out well.

    Args:
        run: Runs items; does not raise.
        items: The batch.
        first: What became of it when it was run whole.

    Returns:
        What became of every item, each once. Of n items at most 2 n are run again.
    """
    parts = [items]
    results = [first]
    while parts:
        suspects: list[tuple[Sequence[Item], EngineError]] = []
        answered = False
        for part, part_results in zip(parts, results, strict=True):
            for result in part_results:
                error = result.error
                guilty = len(part) == 1 or isinstance(error, _BLAMELESS)
                if error is None or guilty:
                    answered = answered or error is None
                    yield result
                else:
                    suspects.append((result.items, error))
        if len(parts) >= _HOPELESS_PARTS and not answered:
            for left, error in suspects:
                yield RunResult(left, None, error)
            return
        parts = [half for left, _ in suspects for half in _halves(left)]
        results = [run(part) for part in parts]


def _halves(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Divides items in two; a single one, which failed beside others, is run by itself."""
    middle = (len(items) + 1) // 2
    return [part for part in (items[:middle], items[middle:]) if part]
