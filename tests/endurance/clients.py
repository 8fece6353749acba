"""Clients of several kinds that run at once until enough texts are sent."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from tests.endurance.relay import relaying
from tests.endurance.streams import Manner, embed_stream
from tests.endurance.trial import Trial
from tests.endurance.unary_calls import Ending, embed
from tests.server.service import Client

# Far longer than anything takes on a busy machine; what takes longer hangs.
_HANG_S = 60.0
_BURST_CALLS_MAX = 40
_CALLS_BROKEN_OFF = 5
_THINKING_S_MAX = 0.005
_LEAVE_S_MAX = 0.05
# In the network, in the queue, and in good time.
_DEADLINES_S = ((0.0003, 0.003), (0.005, 0.1), (5.0, 20.0))


class Caller:
    """One client program; it does one thing after the other.

    Args:
        trial: What it takes part in.
        number: Its number among the clients.
        seed: What it draws from, together with the number.
    """

    def __init__(self, trial: Trial, number: int, seed: int) -> None:
        self._trial = trial
        self._choices = random.Random(f"{seed}/{number}")  # noqa: S311 - no secret
        # How often each is done, for one another.
        self._habits: dict[Callable[[], Awaitable[None]], int] = {
            self._call: 40,
            self._call_in_time: 8,
            self._call_and_leave: 8,
            self._call_in_bursts: 5,
            self._stream: 12,
            self._stream_slowly: 5,
            self._stream_in_time: 4,
            self._stream_and_leave: 5,
            self._break_off: 2,
        }

    async def run(self) -> None:
        """Run until enough texts are sent."""
        habits, weights = list(self._habits), list(self._habits.values())
        while self._trial.goes_on:
            (habit,) = self._choices.choices(habits, weights)
            try:
                async with asyncio.timeout(_HANG_S):
                    await habit()
            except TimeoutError:
                self._trial.findings.add_hang(f"{habit.__name__} hangs for {_HANG_S:g} s")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is noted
                self._trial.findings.add(f"{habit.__name__} failed: {error!r}")
            await asyncio.sleep(self._choices.uniform(0, _THINKING_S_MAX))

    @property
    def _client(self) -> Client:
        return self._choices.choice(self._trial.clients)

    @property
    def _narrow_client(self) -> Client:
        return self._choices.choice(self._trial.narrow_clients)

    def _deadline_s(self) -> float:
        return self._choices.uniform(*self._choices.choice(_DEADLINES_S))

    async def _embed(self, ending: Ending, client: Client | None = None) -> None:
        await embed(self._trial, client or self._client, self._choices, ending)

    async def _embed_stream(self, manner: Manner, client: Client | None = None) -> None:
        await embed_stream(self._trial, client or self._client, self._choices, manner)

    async def _call(self) -> None:
        await self._embed(Ending())

    async def _call_in_time(self) -> None:
        await self._embed(Ending(timeout_s=self._deadline_s()))

    async def _call_and_leave(self) -> None:
        await self._embed(Ending(leave_after_s=self._choices.uniform(0, _LEAVE_S_MAX)))

    async def _call_in_bursts(self) -> None:
        calls = self._choices.randint(2, _BURST_CALLS_MAX)
        await asyncio.gather(*(self._embed(Ending()) for _ in range(calls)))

    async def _stream(self) -> None:
        await self._embed_stream(Manner())

    async def _stream_slowly(self) -> None:
        await self._embed_stream(Manner(slow=True), self._narrow_client)

    async def _stream_in_time(self) -> None:
        await self._embed_stream(Manner(timeout_s=self._deadline_s()))

    async def _stream_and_leave(self) -> None:
        slow = self._choices.random() < 0.5
        client = self._narrow_client if slow else self._client
        await self._embed_stream(Manner(leaves=True, slow=slow), client)

    async def _break_off(self) -> None:
        """Cut a connection with calls on it."""
        async with relaying(self._trial.service.address) as relay:
            client = Client(relay.address)
            async with client.channel, asyncio.TaskGroup() as calls:
                for _ in range(_CALLS_BROKEN_OFF):
                    calls.create_task(self._embed(Ending(breaks_off=True), client))
                    calls.create_task(self._embed_stream(Manner(breaks_off=True), client))
                await asyncio.sleep(self._choices.uniform(0, _LEAVE_S_MAX))
                relay.cut()
