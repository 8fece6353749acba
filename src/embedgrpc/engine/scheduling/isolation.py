"""Finds the sequences that make a batch fail, so that the others get their results.

A failed batch runs again in halves, failed halves in quarters, down to single sequences. The same
is done with rows that are not finite: one sequence's infinity may spoil others of its batch where
activations share a scale.
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

# When at least this many parts of a batch all fail, the sequences are not to blame.
_HOPELESS_PARTS = 8
# Errors that no sequence causes; running again would only take time.
_BLAMELESS = (BackendUnavailableError, DeadlineExpiredError, OverloadedError)


@dataclass(frozen=True, slots=True)
class RunResult(Generic[Item, Output]):
    """The result of running some items.

    Attributes:
        items: The items.
        output: The model's output; None where `error` is set.
        error: The reason why there is no output.
    """

    items: Sequence[Item]
    output: Output | None
    error: EngineError | None


# Runs items and returns the results: one for those that succeeded, others with the reason.
Run = Callable[[Sequence[Item]], Sequence[RunResult[Item, Output]]]


def run_isolating(
    run: Run[Item, Output],
    items: Sequence[Item],
    first: Sequence[RunResult[Item, Output]],
) -> Iterator[RunResult[Item, Output]]:
    """Run failed items again in smaller parts, until each failure is a single item's.

    All that is left fails at once when the backend is unreachable, overloaded or out of time, or
    when eight or more parts have run and none succeeded.

    Args:
        run: Runs items; does not raise.
        items: The batch.
        first: The results of running it whole.

    Returns:
        Results that hold every item once. Of n items at most 2 n run again.
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
    """Divide items in two. A single one, which failed beside others, runs again by itself."""
    middle = (len(items) + 1) // 2
    return [part for part in (items[:middle], items[middle:]) if part]
