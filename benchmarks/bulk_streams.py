"""A process that streams passages without end. It answers requests line by line, as JSON.

python -m benchmarks.bulk_streams TARGET

`{"do": "start", "streams": 2}` starts streams, `{"do": "stop"}` ends them, and `{"do": "count"}`
does nothing. Each answer has the number of embedded texts so far. A process of its own, so that its
work does not hold up who measures.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator

from benchmarks import workloads
from embedgrpc.client import AsyncClient


class _Streams:
    """Endless streams to one server.

    Args:
        target: Its address.

    Attributes:
        texts: The number of embedded texts.
    """

    def __init__(self, target: str) -> None:
        self.texts = 0
        self._target = target
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, action: str, streams: int) -> None:
        """Do what a request asks for."""
        if action == "start":
            self._tasks += [
                asyncio.create_task(self._stream(f"stream {number}")) for number in range(streams)
            ]
        elif action == "stop":
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks.clear()

    async def _stream(self, name: str) -> None:
        async with AsyncClient(self._target, timeout_s=600) as client:
            async for _ in client.embed_stream(_endless(name), order="completion"):
                self.texts += 1


def _endless(name: str) -> Iterator[str]:
    """Yield passages, no two equal: the server runs equal texts once."""
    for number in itertools.count():
        for text in workloads.passages().texts:
            yield f"{name} {number} {text}"


async def _main(target: str) -> None:
    streams = _Streams(target)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        request = json.loads(line)
        await streams.run(request["do"], request.get("streams", 0))
        sys.stdout.write(json.dumps({"texts": streams.texts}) + "\n")
        sys.stdout.flush()
    await streams.run("stop", 0)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
