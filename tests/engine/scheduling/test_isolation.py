from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedgrpc.engine.errors import (
    BackendFailedError,
    BackendUnavailableError,
    DeadlineExpiredError,
    EngineError,
    OverloadedError,
)
from embedgrpc.engine.scheduling.isolation import RunResult, run_isolating

FAILED = BackendFailedError("the run failed")
SIZES = st.integers(1, 40)


class _Model:
    """Fails batches with a guilty row, and spoils given rows."""

    def __init__(self, guilty: set[int], spoilt: set[int]) -> None:
        self.guilty = guilty
        self.spoilt = spoilt
        self.runs: list[list[int]] = []

    def run(self, rows: Sequence[int]) -> list[RunResult[int, str]]:
        """Run rows: with a guilty one all fail, otherwise only spoilt ones do."""
        self.runs.append(list(rows))
        if self.guilty & set(rows):
            return [RunResult(rows, None, FAILED)]
        good = [row for row in rows if row not in self.spoilt]
        bad = [row for row in rows if row in self.spoilt]
        results: list[RunResult[int, str]] = [RunResult(good, "answer", None)] if good else []
        return results + ([RunResult(bad, None, FAILED)] if bad else [])


def isolate(model: _Model, size: int) -> tuple[set[int], dict[int, EngineError]]:
    """Run a batch; return the rows that succeeded, and those that failed with their errors."""
    rows = range(size)
    answered: list[int] = []
    failed: list[tuple[int, EngineError]] = []
    for result in run_isolating(model.run, rows, model.run(rows)):
        if result.error is None:
            answered += result.items
        else:
            failed += [(row, result.error) for row in result.items]
    assert sorted([*answered, *(row for row, _ in failed)]) == list(rows)
    return set(answered), dict(failed)


@given(
    size=SIZES,
    guilty=st.sets(st.integers(0, 39), max_size=3),
    spoilt=st.sets(st.integers(0, 39), max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_only_the_guilty_fail(size: int, guilty: set[int], spoilt: set[int]) -> None:
    """Each row succeeds or fails by its own fault, exactly once, and runs are bounded."""
    model = _Model(guilty, spoilt)
    answered, failed = isolate(model, size)
    assert set(failed) == (guilty | spoilt) & set(range(size))
    assert answered == set(range(size)) - set(failed)
    assert sum(len(run) for run in model.runs[1:]) <= 2 * size * size.bit_length()
    assert len(model.runs) <= 1 + 2 * size


def test_one_guilty_row_costs_few_runs() -> None:
    """One row of 32 is found with two runs per halving."""
    model = _Model({21}, set())
    answered, failed = isolate(model, 32)
    assert (len(answered), list(failed)) == (31, [21])
    assert len(model.runs) == 1 + 2 * 5


def test_spoilt_row_is_run_again_alone() -> None:
    """A row that another of its batch may have spoilt gets a second chance."""

    class _Infectious(_Model):
        """Also spoils the row behind a spoilt one."""

        def run(self, rows: Sequence[int]) -> list[RunResult[int, str]]:
            infected = self.spoilt | {row + 1 for row in self.spoilt & set(rows)}
            return _Model(set(), infected).run(rows)

    assert isolate(_Infectious(set(), {3}), 10)[1].keys() == {3}


def test_backend_that_fails_always_is_not_run_for_every_row() -> None:
    """When eight parts in a row fail, the rest fails without running."""
    model = _Model(set(range(512)), set())
    _, failed = isolate(model, 512)
    assert len(failed) == 512
    assert len(model.runs) == 1 + 2 + 4 + 8


@pytest.mark.parametrize("size", [1, 9])
@pytest.mark.parametrize(
    "away",
    [BackendUnavailableError("away"), OverloadedError("full"), DeadlineExpiredError("late")],
)
def test_absent_backend_is_not_asked_again(size: int, away: EngineError) -> None:
    """A backend that is unreachable, overloaded or too late fails the whole batch at once."""
    runs = 0

    def run(rows: Sequence[int]) -> list[RunResult[int, str]]:
        nonlocal runs
        runs += 1
        return [RunResult(rows, None, away)]

    (result,) = run_isolating(run, range(size), run(range(size)))
    assert (result.error, list(result.items), runs) == (away, list(range(size)), 1)
