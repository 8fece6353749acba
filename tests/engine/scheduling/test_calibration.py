import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedgrpc.engine.scheduling.calibration import CostModel, calibrate, fit


class _Machine:
    """A machine on which time passes only while it runs batches."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now = 0.0
        self.shapes: list[tuple[int, int]] = []
        self._seconds = seconds

    def run(self, sequences: int, length: int) -> float:
        """Runs a batch; returns what it took."""
        self.shapes.append((sequences, length))
        taken = self._seconds(sequences * length)
        self.now += taken
        return taken

    def calibrate(self, *, max_tokens: int = 512, limit_s: float = 10) -> CostModel:
        """Measures this machine."""
        return calibrate(self.run, max_tokens=max_tokens, limit_s=limit_s, clock=lambda: self.now)


@given(batch_s=st.floats(1e-4, 0.01), token_s=st.floats(1e-6, 1e-3))
def test_linear_costs_are_found(batch_s: float, token_s: float) -> None:
    """What a batch costs for being one and what it costs for each token are told apart."""
    cost = fit([(tokens, batch_s + token_s * tokens) for tokens in (64, 256, 1024, 8192)])
    assert cost.batch_s == pytest.approx(batch_s, rel=0.01)
    assert cost.token_s == pytest.approx(token_s, rel=0.01)
    assert cost.tokens_within(cost.seconds(4096)) == pytest.approx(4096, abs=1)


def test_budget_is_where_being_a_batch_is_a_sixteenth() -> None:
    """A full batch takes about 16 times as long as its overhead."""
    cost = _Machine(lambda tokens: 0.002 + 60e-6 * tokens).calibrate()
    budget = cost.budget(tokens=0, sequences=512, bulk_batch_s=0.02)
    assert cost.batch_s / cost.seconds(budget.tokens) == pytest.approx(0.06, rel=0.1)
    assert budget.overhead_tokens == round(0.002 / 60e-6)
    assert budget.sequences == 512
    # In 20 ms, 300 tokens.
    assert budget.shared_tokens == pytest.approx(300, abs=2)


def test_short_bulk_batches_do_not_waste_more_than_a_fifth() -> None:
    """Where overhead is large, bulk batches are longer than asked for."""
    cost = _Machine(lambda tokens: 0.010 + 60e-6 * tokens).calibrate()
    budget = cost.budget(tokens=0, sequences=512, bulk_batch_s=0.012)
    assert cost.batch_s / cost.seconds(budget.shared_tokens) == pytest.approx(0.19, abs=0.03)


def test_budget_that_was_set_stays() -> None:
    """A budget from the settings is taken as it is, and bulk batches are no larger."""
    cost = CostModel(batch_s=0.002, token_s=1e-5, largest_tokens=1024)
    budget = cost.budget(tokens=100, sequences=7, bulk_batch_s=1)
    assert (budget.tokens, budget.shared_tokens, budget.sequences) == (100, 100, 7)


def test_flat_costs_give_the_largest_budget_that_was_measured() -> None:
    """On a device that is never full, larger batches are taken as far as they were tried."""
    machine = _Machine(lambda _: 0.0015)
    cost = machine.calibrate(limit_s=1)
    assert cost.largest_tokens == 65_536
    assert cost.budget(tokens=0, sequences=8192, bulk_batch_s=0.02).tokens >= 65_536


def test_slow_model_is_not_measured_for_long() -> None:
    """Where a run takes half a second, two sizes are measured and no more."""
    machine = _Machine(lambda tokens: 0.5 * tokens / 64)
    cost = machine.calibrate(limit_s=1)
    assert cost.largest_tokens == 128
    assert machine.now < 6
    assert cost.budget(tokens=0, sequences=512, bulk_batch_s=0.02).tokens == 512


def test_measuring_ends_once_the_budget_is_known() -> None:
    """No batches are run that are larger than any that will ever be formed."""
    machine = _Machine(lambda tokens: 0.002 + 60e-6 * tokens)
    cost = machine.calibrate()
    assert max(sequences * length for sequences, length in machine.shapes) == 1024
    assert cost.knee_tokens <= 1024


def test_short_models_are_measured_with_what_they_read() -> None:
    """No sequence is longer than the model's limit."""
    machine = _Machine(lambda tokens: 0.002 + 60e-6 * tokens)
    machine.calibrate(max_tokens=16)
    assert {length for _, length in machine.shapes} == {16}


@pytest.mark.parametrize("seed", range(5))
def test_disturbed_runs_do_not_count(seed: int) -> None:
    """A machine that is busy with something else half of the time gives about the same budget."""
    source = random.Random(seed)  # noqa: S311 - no secret
    machine = _Machine(lambda tokens: (0.002 + 60e-6 * tokens) * (1 + 2 * (source.random() < 0.4)))
    budget = machine.calibrate().budget(tokens=0, sequences=512, bulk_batch_s=0.02)
    assert 512 <= budget.tokens <= 2048


def test_noise_that_makes_larger_batches_free_is_survived() -> None:
    """Costs that make no sense give a budget within bounds all the same."""
    for measured in (
        [(64, 0.02), (128, 0.01)],
        [(64, 0.01), (128, 0.09)],
        [(64, 1e-9), (128, 1.0)],
    ):
        budget = fit(measured).budget(tokens=0, sequences=512, bulk_batch_s=0.02)
        assert budget.tokens == 512
        assert budget.overhead_tokens >= 0
        assert 0 < budget.shared_tokens <= budget.tokens


def test_disturbed_start_is_measured_again() -> None:
    """What kept the machine busy while the small batches ran does not make the budget larger."""
    machine = _Machine(lambda tokens: 0.002 + 60e-6 * tokens)
    quiet = machine.calibrate().knee_tokens
    busy = _Machine(lambda tokens: 0.002 + 60e-6 * tokens + (0.004 if busy.now < 0.2 else 0))
    assert busy.calibrate().knee_tokens == quiet


@pytest.mark.parametrize(
    ("batch_s", "token_s", "tokens"),
    [(0.002, 60e-6, 576), (0.006, 60e-6, 704), (0.006, 6e-6, 7360), (0.06, 60e-6, 512)],
)
def test_no_batch_takes_long_where_it_need_not(batch_s: float, token_s: float, tokens: int) -> None:
    """A batch takes 50 ms at most, unless it would have to be very small for that."""
    assert CostModel(batch_s, token_s, 8192).knee_tokens == tokens
