"""What callers share, and who waits for it."""

import asyncio

import pytest

from embedgrpc.server.calls.budget import Budget, Caller

ONE, OTHER = Caller("one", "one:1"), Caller("other", "other:1")


@pytest.mark.parametrize("total", [*range(3, 100), 22 << 20, 256 << 20])
def test_an_empty_budget_admits_the_largest_amount(total: int) -> None:
    """What `largest` promises fits, whatever the rounding."""
    budget = Budget(total)
    assert budget.try_take(ONE, budget.largest(total))


async def test_who_gives_up_lets_in_those_behind() -> None:
    """A small amount does not wait for what a large one in front of it would have needed."""
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
