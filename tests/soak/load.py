"""The clients of the soak, in a process of their own: all that clients do, good and bad.

python -m tests.soak.load TARGET SECONDS SEED

Prints one line of JSON at the end: how many calls of each kind ended with which status.
"""

import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import embedding_service_pb2_grpc as embedding_grpc
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import model_service_pb2_grpc as models_grpc
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import rerank_service_pb2_grpc as rerank_grpc

CALLERS = 6
_TIMEOUT_S = 60.0
# A message over the server's limit of 4 MiB.
_OVERSIZED_CHARACTERS = 5_000_000
_WORDS = ("tower", "river", "metre", "sea", "red", "light", "stone", "bridge", "wind", "glass")
_CHANNEL_LIFE_S = 20.0
_THINKING_S_MAX = 0.2


class Caller:
    """One client program: it does one thing after the other until the time is up."""

    def __init__(self, target: str, seed: str, ends_at: float) -> None:
        self.counts: Counter[str] = Counter()
        self._target = target
        self._choices = random.Random(seed)  # noqa: S311 - no secret
        self._ends_at = ends_at

    async def run(self) -> None:
        """Call until the time is up, on a new channel now and then."""
        habits: dict[Callable[[Any], Awaitable[None]], int] = {
            self._embed: 30,
            self._rerank: 6,
            self._list_models: 4,
            self._stream: 8,
            self._stream_slowly: 3,
            self._stream_and_leave: 3,
            self._cancel: 8,
            self._expire: 4,
            self._be_refused: 10,
            self._oversized: 2,
            self._burst: 2,
        }
        while time.monotonic() < self._ends_at:
            channel_ends_at = time.monotonic() + self._choices.uniform(1, _CHANNEL_LIFE_S)
            async with grpc.aio.insecure_channel(self._target) as channel:
                while time.monotonic() < min(channel_ends_at, self._ends_at):
                    (habit,) = self._choices.choices(list(habits), list(habits.values()))
                    await self._count(habit, channel)
                    await asyncio.sleep(self._choices.uniform(0, _THINKING_S_MAX))

    async def _count(self, habit: Callable[[Any], Awaitable[None]], channel: Any) -> None:
        status = "OK"
        try:
            await habit(channel)
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            status = "CANCELLED"
        self.counts[f"{habit.__name__.strip('_')} {status}"] += 1

    def _text(self, words: int = 0) -> str:
        return " ".join(self._choices.choices(_WORDS, k=words or self._choices.randint(1, 200)))

    def _texts(self, count: int) -> list[str]:
        return [self._text() for _ in range(self._choices.randint(1, count))]

    async def _embed(self, channel: Any) -> None:
        stub = embedding_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        await stub.Embed(embedding.EmbedRequest(texts=self._texts(16)), timeout=_TIMEOUT_S)

    async def _rerank(self, channel: Any) -> None:
        stub = rerank_grpc.RerankServiceStub(channel)  # type: ignore[no-untyped-call]
        request = rerank.RerankRequest(query=self._text(8), documents=self._texts(20))
        await stub.Rerank(request, timeout=_TIMEOUT_S)

    async def _list_models(self, channel: Any) -> None:
        stub = models_grpc.ModelServiceStub(channel)  # type: ignore[no-untyped-call]
        await stub.ListModels(models.ListModelsRequest(), timeout=_TIMEOUT_S)

    async def _stream(self, channel: Any, *, pause_s: float = 0.0, leaves_after: int = 0) -> None:
        stub = embedding_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.StreamEmbed(self._requests(), timeout=_TIMEOUT_S)
        try:
            async for count, _ in _enumerated(call):
                if leaves_after and count >= leaves_after:
                    return
                await asyncio.sleep(pause_s)
        finally:
            call.cancel()

    async def _requests(self) -> AsyncIterator[Any]:
        yield embedding.StreamEmbedRequest(setup=embedding.StreamEmbedSetup())
        numbers = itertools.count()
        for _ in range(self._choices.randint(1, 10)):
            inputs = [
                embedding.StreamEmbedInput(id=str(next(numbers)), text=text)
                for text in self._texts(32)
            ]
            yield embedding.StreamEmbedRequest(batch=embedding.StreamEmbedBatch(inputs=inputs))

    async def _stream_slowly(self, channel: Any) -> None:
        await self._stream(channel, pause_s=self._choices.uniform(0, 0.5))

    async def _stream_and_leave(self, channel: Any) -> None:
        await self._stream(channel, leaves_after=self._choices.randint(1, 3))

    async def _cancel(self, channel: Any) -> None:
        stub = embedding_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Embed(embedding.EmbedRequest(texts=self._texts(64)), timeout=_TIMEOUT_S)
        await asyncio.sleep(self._choices.uniform(0, 0.05))
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

    async def _expire(self, channel: Any) -> None:
        stub = embedding_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        timeout_s = self._choices.uniform(0.0005, 0.05)
        await stub.Embed(embedding.EmbedRequest(texts=self._texts(32)), timeout=timeout_s)

    async def _be_refused(self, channel: Any) -> None:
        stub = embedding_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        request = self._choices.choice(
            (
                embedding.EmbedRequest(texts=self._texts(200), model="x" * 100),
                embedding.EmbedRequest(texts=[*self._texts(200), " "]),
                embedding.EmbedRequest(texts=["\u200b" * 100_000]),
                embedding.EmbedRequest(),
            )
        )
        await stub.Embed(request, timeout=_TIMEOUT_S)

    async def _oversized(self, channel: Any) -> None:
        stub = embedding_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        request = embedding.EmbedRequest(texts=["a" * _OVERSIZED_CHARACTERS])
        await stub.Embed(request, timeout=_TIMEOUT_S)

    async def _burst(self, channel: Any) -> None:
        calls = [self._embed(channel) for _ in range(self._choices.randint(2, 60))]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def _enumerated(call: Any) -> AsyncIterator[tuple[int, Any]]:
    count = 0
    async for response in call:
        count += 1
        yield count, response


async def _main(target: str, seconds: float, seed: str) -> None:
    ends_at = time.monotonic() + seconds
    callers = [Caller(target, f"{seed}/{number}", ends_at) for number in range(CALLERS)]
    await asyncio.gather(*(caller.run() for caller in callers))
    total: Counter[str] = Counter()
    for caller in callers:
        total += caller.counts
    sys.stdout.write(json.dumps(total) + "\n")


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], float(sys.argv[2]), sys.argv[3]))
