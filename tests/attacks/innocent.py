"""Another caller of the server that is attacked: one short Embed every 50 ms.

python -m tests.attacks.innocent TARGET

A process of its own, so that the attacker's work does not hold it up. It writes a line of JSON
for each call and ends when its standard input does.
"""

import asyncio
import contextlib
import json
import sys
import time

import grpc
import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import embedding_service_pb2_grpc

_INTERVAL_S = 0.05
_TIMEOUT_S = 60.0
_REQUEST = pb.EmbedRequest(texts=["The tower is 330 metres tall."])


async def _call(stub: "embedding_service_pb2_grpc.EmbeddingServiceStub") -> None:
    began = time.time()
    status = "OK"
    try:
        await stub.Embed(_REQUEST, timeout=_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        status = f"{error.code().name}: {error.details()}"
    took_s = time.time() - began
    sys.stdout.write(json.dumps({"began": began, "took_s": took_s, "status": status}) + "\n")
    sys.stdout.flush()


async def _until_closed() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def _main(target: str) -> None:
    closed = asyncio.create_task(_until_closed())
    async with grpc.aio.insecure_channel(target) as channel:
        stub = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        while not closed.done():
            await _call(stub)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(closed), _INTERVAL_S)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
