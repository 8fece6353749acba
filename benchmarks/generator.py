"""Send unary calls: a fixed number in flight (closed loop), or at planned times (open loop).

A closed loop sends the next call when one ends. It sends nothing while the server stalls, so a
stall shows in the latency of a few calls only ("coordinated omission"). It measures throughput. An
open loop sends at planned times, whether or not earlier calls have ended, like many independent
clients, and latency counts from the planned time. It measures what clients see.

The generator usually shares the cores with the server that it measures. So it serialises the
requests beforehand, and does not parse the responses.
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
# More calls on one connection might wait in the generator, where the server cannot refuse them.
_CALLS_PER_CONNECTION = 100
_CONNECTIONS = 80
# About twice the default limit of a model's queue, so that the server refuses, not the generator.
IN_FLIGHT_MAX: Final = _CONNECTIONS * _CALLS_PER_CONNECTION
_WARM_UP_S_MAX = 2.0
_OPTIONS = (
    # Otherwise all channels of a process share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
_Result = TypeVar("_Result")


class Generator:
    """Sends the calls of one workload to one server, in the same order in every window.

    Args:
        served: The server.
        calls: The calls to send.
        connections: The number of connections. Each carries 100 calls at once; further calls are
            not sent.
        deadline_s: The deadline of each call; None for no deadline.
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
        # A stack, so that few calls in flight use few connections.
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
        """Leave the server idle, for work that it defers, then keep it busy.

        Args:
            seconds: The longest time for each of the two.

        Raises:
            RuntimeError: No call succeeded.
        """
        seconds = min(seconds, _WARM_UP_S_MAX)
        await asyncio.sleep(seconds)
        window = await self.closed_loop(in_flight=IN_FLIGHT[-1], seconds=seconds)
        codes = {one.code.name for one in window.outcomes}
        if StatusCode.OK.name not in codes:
            raise RuntimeError(f"the server answers {', '.join(sorted(codes))} only")

    async def closed_loop(self, *, in_flight: int, seconds: float) -> Window:
        """Keep `in_flight` calls in flight; return when the last one has ended."""
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
        """Send calls at planned times; return when the last one has ended.

        Args:
            plan: Times within the window, ascending.
            seconds: The length of the window.
        """
        loop = asyncio.get_running_loop()
        requests = itertools.cycle(self._calls.requests)
        stopped = threading.Event()
        async with self._window(seconds) as (window, calls):

            def send(planned_s: float) -> None:
                calls.create_task(self._call(next(requests), planned_s, window))

            # In a thread: the timers of an event loop have a resolution of a millisecond.
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
        """Measure the calls of the body; end when all have ended."""
        pid = self._served.pid
        async with asyncio.TaskGroup() as calls:
            window = Window(seconds)
            own_s, server_s, all_s = time.process_time(), cpu_s(pid), machine_cpu_s()
            yield window, calls
            window.generator_cpu_s = time.process_time() - own_s
            known_s = window.generator_cpu_s + cpu_s(pid) - server_s
            # Both count in ticks, at different moments.
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
    """Run a coroutine on uvloop if it is installed: calls need less CPU on it."""
    factory = None
    if importlib.util.find_spec("uvloop"):
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
