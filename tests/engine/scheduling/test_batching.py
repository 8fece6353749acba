import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedgrpc.engine.scheduling.batching import BatchBudget, BatchSize, choose_group

LENGTHS = st.integers(1, 12) | st.integers(1, 80)
BUDGETS = st.builds(
    BatchBudget,
    tokens=st.integers(1, 200),
    sequences=st.integers(1, 20),
    overhead_tokens=st.integers(0, 40),
)
WAITING = st.dictionaries(LENGTHS, st.integers(1, 30), min_size=1, max_size=30)


def cost(waiting: dict[int, int], group: tuple[int, ...], budget: BatchBudget) -> int:
    """Return the cost of running a group of lengths in batches padded to the longest of them."""
    size = sum(waiting[length] for length in group)
    batches = -(-size // budget.room(max(group)))
    return batches * budget.overhead_tokens + size * max(group)


@given(waiting=WAITING, budget=BUDGETS, data=st.data())
@settings(max_examples=400, deadline=None)
def test_group_is_a_run_of_lengths_around_the_anchor(
    waiting: dict[int, int], budget: BatchBudget, data: st.DataObject
) -> None:
    """The group includes the anchor and all queued lengths between its ends."""
    lengths = sorted(waiting)
    anchor = data.draw(st.sampled_from(lengths))
    group = list(choose_group(lengths, waiting, anchor=anchor, budget=budget))
    begin = lengths.index(group[0])
    assert anchor in group
    assert group == lengths[begin : begin + len(group)]


@given(
    waiting=st.dictionaries(st.integers(1, 40), st.integers(1, 30), min_size=1, max_size=7),
    budget=BUDGETS,
    data=st.data(),
)
@settings(max_examples=400, deadline=None)
def test_group_is_part_of_the_cheapest_division(
    waiting: dict[int, int], budget: BatchBudget, data: st.DataObject
) -> None:
    """No other division of the queued lengths into groups of neighbours costs less."""
    lengths = sorted(waiting)
    anchor = data.draw(st.sampled_from(lengths))
    group = tuple(choose_group(lengths, waiting, anchor=anchor, budget=budget))
    best, best_with_group = math.inf, math.inf
    for cuts in range(2 ** (len(lengths) - 1)):
        groups: list[tuple[int, ...]] = [(lengths[0],)]
        for position, length in enumerate(lengths[1:]):
            if cuts >> position & 1:
                groups.append((length,))
            else:
                groups[-1] += (length,)
        total = sum(cost(waiting, one, budget) for one in groups)
        best = min(best, total)
        if group in groups:
            best_with_group = min(best_with_group, total)
    assert best_with_group == best


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60), budget=BUDGETS)
def test_filling_keeps_the_budget(lengths: list[int], budget: BatchBudget) -> None:
    """Everything that fits goes in, and only a single sequence may exceed the budget."""
    filling = BatchSize(budget)
    taken: list[int] = []
    for length in lengths:
        if not taken or filling.room(length) > 0:
            filling.add(length)
            taken.append(length)
    assert filling.sequences == len(taken) <= max(budget.sequences, 1)
    assert filling.padded_tokens == len(taken) * max(taken)
    assert filling.padded_tokens <= budget.tokens or len(taken) == 1


def test_longer_sequences_leave_less_room() -> None:
    """A sequence that widens all others is added only if they all still fit."""
    filling = BatchSize(BatchBudget(tokens=120, sequences=100, overhead_tokens=0))
    for _ in range(10):
        filling.add(10)
    assert (filling.room(10), filling.room(8)) == (2, 2)
    assert filling.room(12) == 0
    filling.add(10)
    assert (filling.room(10), filling.room(11)) == (1, -1)


def test_bulk_batches_are_smaller_while_interactive_calls_come() -> None:
    """The shared budget is the smaller one, or the same where there is no smaller."""
    budget = BatchBudget(tokens=512, sequences=64, overhead_tokens=32, shared_tokens=128)
    assert budget.when_shared().tokens == 128
    assert BatchBudget(tokens=512, sequences=64, overhead_tokens=32).when_shared().tokens == 512
    assert budget.when_shared().when_shared().tokens == 128


@pytest.mark.parametrize(
    ("padded_tokens", "seconds", "shared"),
    [
        (200, 0.040, 100),
        (400, 0.040, 200),
        (200, 2.000, 50),
        (200, 0.020, 200),
        (200, 0.016, 250),
        (200, 0.001, 400),
        (100, 0.010, 400),
        (99, 0.001, 200),
    ],
    ids=["slow", "slow, unshared", "hung", "just right", "quick", "quicker", "half", "small"],
)
def test_bulk_batches_beside_calls_adapt(padded_tokens: int, seconds: float, shared: int) -> None:
    """They shrink at once if one took over 20 ms, and grow by at most twice if one was quick."""
    budget = BatchBudget(tokens=512, sequences=64, overhead_tokens=10, shared_tokens=200)
    adapted = budget.after_bulk_batch(padded_tokens, seconds, limit_s=0.020)
    assert adapted == replace(budget, shared_tokens=shared)


def test_bulk_batches_beside_calls_find_their_size() -> None:
    """Whatever they cost, they soon take the time allowed, within the budget and the overhead."""
    for batch_s, token_s, shared in ((1e-3, 1e-4, 190), (5e-3, 1e-6, 512), (1e-3, 1e-2, 50)):
        budget = BatchBudget(tokens=512, sequences=64, overhead_tokens=10)
        for _ in range(20):
            tokens = budget.when_shared().tokens
            budget = budget.after_bulk_batch(tokens, batch_s + token_s * tokens, limit_s=0.020)
        assert abs(budget.shared_tokens - shared) <= 1


def test_slow_batches_without_overhead_hold_a_token() -> None:
    """However slow the machine is, a batch holds at least one token."""
    budget = BatchBudget(tokens=512, sequences=64, overhead_tokens=0)
    assert budget.after_bulk_batch(512, 1000, limit_s=0.020).shared_tokens == 1
