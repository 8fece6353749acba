"""Large responses are made few at a time."""

import asyncio
import threading
from contextvars import ContextVar

import pytest

from embedgrpc.engine.results.packing import pack_in_turn
from tests.engine.fakes import WAIT_S

_NAME: ContextVar[str] = ContextVar("name")


async def test_one_response_is_made_at_a_time() -> None:
    """The next one waits for the one before."""
    at_once = most = 0

    def pack() -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        at_once -= 1
        return threading.current_thread().name

    names = await asyncio.gather(*(pack_in_turn(pack) for _ in range(50)))
    assert most == 1
    assert set(names) == {"pack_0"}


async def test_a_response_of_a_cancelled_call_is_not_made() -> None:
    """It leaves the line with its call."""
    begun, go_on = threading.Event(), threading.Event()
    made: list[str] = []

    def first() -> None:
        begun.set()
        assert go_on.wait(WAIT_S)

    running = asyncio.create_task(pack_in_turn(first))
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    waiting = asyncio.create_task(pack_in_turn(lambda: made.append("cancelled")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    go_on.set()
    await running
    await pack_in_turn(lambda: made.append("last"))
    assert made == ["last"]


async def test_context_variables_are_those_of_the_call() -> None:
    """What the call has set can be read on the other thread."""
    _NAME.set("mine")
    assert await pack_in_turn(_NAME.get) == "mine"


async def test_errors_reach_the_call() -> None:
    """What cannot be packed raises where it is awaited."""

    def fail() -> None:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        await pack_in_turn(fail)
