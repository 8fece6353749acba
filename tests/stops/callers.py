"""Callers of one server that do not retry, until the server has stopped.

python -m tests.stops.callers TARGET --callers N [--pause-ms MS]

Each caller has its own connection, and calls again as soon as it has its answer, or after a pause
if one is given. The process writes a line once the callers have their first answers. Once each has
failed, it writes a line of JSON with the count of each status, and ends.
"""

import argparse
import asyncio
import collections
import json
import random
import sys

import grpc
import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import embedding_service_pb2_grpc

_TIMEOUT_S = 60.0
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)


async def _call_until_it_fails(
    target: str, pause_s: float, outcomes: collections.Counter[str], answered: asyncio.Semaphore
) -> None:
    chance = random.Random()  # noqa: S311 - no secret
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        stub = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.EmbedRequest(texts=["The tower is 330 metres tall."])
        while True:
            try:
                await stub.Embed(request, timeout=_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name] += 1
                return
            outcomes["OK"] += 1
            answered.release()
            if pause_s:
                await asyncio.sleep(chance.expovariate(1 / pause_s))


async def _main(target: str, callers: int, pause_s: float) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    answered = asyncio.Semaphore(0)
    calling = asyncio.gather(
        *(_call_until_it_fails(target, pause_s, outcomes, answered) for _ in range(callers))
    )
    for _ in range(10 * callers):
        await answered.acquire()
    sys.stdout.write("calling\n")
    sys.stdout.flush()
    await calling
    sys.stdout.write(json.dumps(outcomes) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--callers", type=int, required=True)
    parser.add_argument("--pause-ms", type=float, default=0.0)
    parsed = parser.parse_args(sys.argv[1:])
    asyncio.run(_main(parsed.target, parsed.callers, parsed.pause_ms / 1000))
