"""A short version of the long run; see `tests.endurance`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from embedgrpc.backends.base import NO_CONTEXT, BackendError, PaddedBatch, RunContext
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.libraries.arrays import FloatArray
from tests.endurance.judging_backend import JudgingBackend
from tests.endurance.plan import Plan
from tests.endurance.run import run
from tests.endurance.trial import Outcome


@pytest.mark.parametrize(
    ("seed", "lanes", "compete", "queued"),
    [(1, 3, False, 120), pytest.param(2, 2, True, 400, marks=pytest.mark.long)],
)
def test_thousands_of_texts_through_everything_that_may_happen(
    *, seed: int, lanes: int, compete: bool, queued: int, tmp_path: Path
) -> None:
    """Each text is answered once, by its own answer, or fails by its own fault; nothing stays."""
    plan = Plan(
        items=6000,
        seed=seed,
        cache_dir=tmp_path,
        lanes=lanes,
        lanes_compete=compete,
        queued_inputs_max=queued,
    )
    summary = run(plan)
    assert not summary.problems, "\n".join([f"seed {seed}", *summary.problems])
    # It did happen.
    rare = {Outcome.BLANK, Outcome.GAVE_WAY}
    assert all(summary.outcomes[outcome] for outcome in Outcome if outcome not in rare)
    assert all(
        summary.fates[fate]
        for fate in (SequenceOutcome.ANSWERED, SequenceOutcome.FAILED, SequenceOutcome.CANCELLED)
    )
    assert summary.account.again
    assert summary.totals["embedgrpc.batch.shared_sequences"]
    assert summary.account.for_nobody < summary.account.rows / 20


class _Swapping(JudgingBackend):
    """Gives each row of a batch the answer of the one before it."""

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        return {
            output: np.roll(rows, 1, axis=0) for output, rows in super().run(batch, context).items()
        }


class _Unreliable(JudgingBackend):
    """Fails on batches of a certain length."""

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        answers = super().run(batch, context)
        if batch.input_ids.shape[1] == 9:
            raise BackendError("the run failed")
        return answers


@pytest.mark.parametrize(
    ("backend", "problem"),
    [
        (_Swapping, "got an answer that is not its own"),
        pytest.param(_Unreliable, "fail with", marks=pytest.mark.slow),
    ],
)
def test_a_run_notices_a_backend_that_does_wrong(
    backend: type[JudgingBackend], problem: str, tmp_path: Path
) -> None:
    """The judges see what is wrong, and end the run."""
    summary = run(Plan(items=5000, seed=1, cache_dir=tmp_path, backend=backend))
    assert any(problem in one for one in summary.problems)
