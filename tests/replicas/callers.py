"""Callers of several servers, with the shipped client, until a line comes on standard input.

python -m tests.replicas.callers TARGET --callers N [--stream] [--ca-file FILE --token TOKEN]

Without a certificate, the client balances over the servers of the target itself. The process
writes a line once every caller has an answer, and in the end a line of JSON with the count of each
outcome.
"""

import argparse
import asyncio
import collections
import json
import sys
from collections.abc import AsyncIterator, Sequence

from embedgrpc.client import AsyncClient, EmbedGrpcError, ShuttingDownError

_TEXT = "The tower is 330 metres tall."
_TIMEOUT_S = 30.0
_PAUSE_S = 0.02


class _Callers:
    """Callers with one client, of which one at most sends a stream.

    Attributes:
        outcomes: How many calls, and inputs of streams, had each outcome.
        stopping: Set when they shall call no more.
        answered: Released for each answer.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.stopping = asyncio.Event()
        self.answered = asyncio.Semaphore(0)
        self._unanswered: dict[str, None] = {}
        self._sent = 0

    async def call(self) -> None:
        """Call one by one."""
        while not self.stopping.is_set():
            try:
                await self._client.embed([_TEXT], timeout_s=_TIMEOUT_S)
            except EmbedGrpcError as error:
                self.outcomes[f"{type(error).__name__}: {error}"[:200]] += 1
            else:
                self.outcomes["OK"] += 1
            self.answered.release()
            await asyncio.sleep(_PAUSE_S)

    async def stream(self) -> None:
        """Send inputs on a stream. When its server stops, send the unanswered ones on another."""
        while not self.stopping.is_set() or self._unanswered:
            again = tuple(self._unanswered)
            try:
                async with self._client.embed_stream(self._inputs(again)) as stream:
                    async for result in stream:
                        failed = result.error is not None
                        self.outcomes["STREAM_FAILED" if failed else "STREAM_OK"] += 1
                        del self._unanswered[result.id]
                        self.answered.release()
            except ShuttingDownError as error:
                if set(error.unanswered_ids) - self._unanswered.keys():
                    self.outcomes["STREAM_WRONG_IDS"] += 1
            except EmbedGrpcError as error:
                self.outcomes[f"stream: {type(error).__name__}: {error}"[:200]] += 1
                self.answered.release()

    async def _inputs(self, again: Sequence[str]) -> AsyncIterator[tuple[str, str]]:
        for key in again:
            yield key, _TEXT
        while not self.stopping.is_set():
            self._sent += 1
            self._unanswered[str(self._sent)] = None
            yield str(self._sent), _TEXT
            await asyncio.sleep(_PAUSE_S)


async def _main(arguments: argparse.Namespace) -> None:
    secured = {"ca_file": arguments.ca_file, "token": arguments.token} if arguments.ca_file else {}
    async with AsyncClient(arguments.target, health_check=not secured, **secured) as client:
        callers = _Callers(client)
        tasks = [asyncio.create_task(callers.call()) for _ in range(arguments.callers)]
        if arguments.stream:
            tasks.append(asyncio.create_task(callers.stream()))
        for _ in range(5 * len(tasks)):
            await callers.answered.acquire()
        sys.stdout.write("calling\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        callers.stopping.set()
        await asyncio.gather(*tasks)
    sys.stdout.write(json.dumps(+callers.outcomes) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--callers", type=int, required=True)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--ca-file", default="")
    parser.add_argument("--token", default="")
    asyncio.run(_main(parser.parse_args()))
