"""Sends unary calls: so many at once (a closed loop), or at planned times (an open loop).

A closed loop sends the next call when one is answered. While the server stalls it sends nothing,
so a stall shows in the latencies of a few calls, and not of all those that would have come
meanwhile: "coordinated omission". It tells how much a server can do. An open loop sends when the
plan says so, whatever became of earlier calls, as many independent clients do, and latency counts
from the plan. It tells what clients see.

As a rule the generator shares the cores with the server that it measures. So it sends bytes that
were serialised before, and does not read the answers.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import itertools
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Final, Self, TypeVar

import grpc.aio
from grpc import StatusCode

from benchmarks.processes import RunningServer, cpu_s, machine_cpu_s
from benchmarks.unary_calls import UnaryCalls
from benchmarks.windows import Outcome, Window

IN_FLIGHT: Final = (1, 4, 16, 32, 64)
# By default a server takes 128 calls at once of a connection. More would wait in the generator,
# where no server can refuse them.
_CALLS_PER_CONNECTION = 100
_CONNECTIONS = 80
# About twice what a model's queue takes by default, so that it is the server that refuses.
IN_FLIGHT_MAX: Final = _CONNECTIONS * _CALLS_PER_CONNECTION
_WARM_UP_S_MAX = 2.0
_OPTIONS = (
    # Else all channels of a process share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
_Result = TypeVar("_Result")


class Generator:
    """Sends the calls of one workload to one server, in the same order in every window.

    Args:
        served: The server.
        calls: What to send.
        connections: How many connections; each takes 100 calls at once, and what is more is
            not sent.
        deadline_s: Time that each call has from when it is sent; None sets no deadline.
    """

    def __init__(
        self,
        served: RunningServer,
        calls: UnaryCalls,
        *,
        connections: int = _CONNECTIONS,
        deadline_s: float | None = None,
    ) -> None:
        self._served = served
        self._calls = calls
        self._connections = connections
        self._deadline_s = deadline_s
        self._opened = contextlib.AsyncExitStack()
        # The last is taken first, so that few connections are busy as long as few calls are.
        self._free: list[Any] = []

    async def __aenter__(self) -> Self:
        for _ in range(self._connections):
            channel = grpc.aio.insecure_channel(self._served.target, options=_OPTIONS)
            await self._opened.enter_async_context(channel)
            await channel.channel_ready()
            self._free += [channel.unary_unary(self._calls.method)] * _CALLS_PER_CONNECTION
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def warm_up(self, seconds: float) -> None:
        """Leaves the server idle, for what it puts off until then, and then keeps it busy.

        Args:
            seconds: The most that either takes.

        Raises:
            RuntimeError: It answers nothing, so there is nothing to measure.
        """
        seconds = min(seconds, _WARM_UP_S_MAX)
        await asyncio.sleep(seconds)
        window = await self.closed_loop(in_flight=IN_FLIGHT[-1], seconds=seconds)
        codes = {one.code.name for one in window.outcomes}
        if StatusCode.OK.name not in codes:
            raise RuntimeError(f"the server answers {', '.join(sorted(codes))} only")

    async def closed_loop(self, *, in_flight: int, seconds: float) -> Window:
        """Keeps so many calls in flight, and returns when the last is answered."""
        requests = itertools.cycle(self._calls.requests)
        async with self._window(seconds) as (window, calls):

            async def work() -> None:
                while (now_s := window.now_s()) < seconds:
                    await self._call(next(requests), now_s, window)

            for _ in range(in_flight):
                calls.create_task(work())
            await asyncio.sleep(seconds)
        return window

    async def open_loop(self, plan: Sequence[float], *, seconds: float) -> Window:
        """Sends calls when they are planned, and returns when the last is answered.

        Args:
            plan: Times within the window, ascending.
            seconds: Length of the window.

        Returns:
            What happened.
        """
        loop = asyncio.get_running_loop()
        requests = itertools.cycle(self._calls.requests)
        stopped = threading.Event()
        async with self._window(seconds) as (window, calls):

            def send(planned_s: float) -> None:
                calls.create_task(self._call(next(requests), planned_s, window))

            # In a thread, for an event loop's timers are exact to a millisecond only.
            def keep_time() -> None:
                for planned_s in plan:
                    if stopped.wait(max(planned_s - window.now_s(), 0)):
                        return
                    loop.call_soon_threadsafe(send, planned_s)
                stopped.wait(max(seconds - window.now_s(), 0))

            try:
                await asyncio.to_thread(keep_time)
            finally:
                stopped.set()
        return window

    @contextlib.asynccontextmanager
    async def _window(self, seconds: float) -> AsyncIterator[tuple[Window, asyncio.TaskGroup]]:
        """Measures what its body sends; ends when all is answered."""
        pid = self._served.pid
        async with asyncio.TaskGroup() as calls:
            window = Window(seconds)
            own_s, server_s, all_s = time.process_time(), cpu_s(pid), machine_cpu_s()
            yield window, calls
            window.generator_cpu_s = time.process_time() - own_s
            known_s = window.generator_cpu_s + cpu_s(pid) - server_s
            # Both are counted in ticks, at different moments.
            window.others_cpu_s = max(machine_cpu_s() - all_s - known_s, 0)
        window.server_cpu_s = cpu_s(pid) - server_s

    async def _call(self, request: bytes, planned_s: float, window: Window) -> None:
        if not self._free:
            window.unsent += 1
            return
        method = self._free.pop()
        sent_s = window.now_s()
        call = method(request, timeout=self._deadline_s)
        code = await call.code()
        answer = self._calls.answer
        if code is StatusCode.OK and answer is not None and await call != answer:
            code = StatusCode.UNKNOWN
        window.outcomes.append(Outcome(planned_s, sent_s, window.now_s(), code))
        self._free.append(method)


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs a coroutine, on uvloop where there is one: a call takes less CPU on it."""
    factory = None
    if importlib.util.find_spec("uvloop"):
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
