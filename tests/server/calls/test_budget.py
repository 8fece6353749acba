"""The shares of callers, and the order in which they are served."""

import asyncio

import pytest

from embedgrpc.server.calls.budget import Budget, Holder

ONE, OTHER = Holder("one", "one:1"), Holder("other", "other:1")


@pytest.mark.parametrize("total", [*range(3, 100), 22 << 20, 256 << 20])
def test_an_empty_budget_admits_the_largest_amount(total: int) -> None:
    """The amount that `largest` returns fits, despite rounding."""
    budget = Budget(total)
    assert budget.try_take(ONE, budget.largest(total))


async def test_a_cancelled_call_lets_in_the_next() -> None:
    """When a large amount is cancelled, a small one behind it is served."""
    budget = Budget(90)
    assert budget.try_take(ONE, 10)
    large = asyncio.ensure_future(budget.take(ONE, 80))
    small = asyncio.ensure_future(budget.take(ONE, 1))
    await asyncio.sleep(0)
    assert not small.done()
    large.cancel()
    async with asyncio.timeout(10):
        await small
    assert budget.held == 11
    assert budget.try_take(OTHER, 1)


def test_nothing_is_kept_of_callers_that_hold_nothing() -> None:
    """What is given back is forgotten with its caller."""
    budget = Budget(90)
    for caller in (ONE, OTHER):
        assert budget.try_take(caller, 10)
        assert budget.try_take(caller, 5)
    for amount in (5, 10):
        for caller in (ONE, OTHER):
            budget.give_back(caller, amount)
    assert budget.held == 0
    assert not budget._by_connection
    assert not budget._by_caller
