"""Other callers of the server that is attacked: one short text every 50 ms.

python -m tests.attacks.innocent TARGET HTTP_TARGET

One calls over gRPC, and another over HTTP unless the second address is empty. Each keeps its
connection. A process of its own, so that the attacker's work does not hold it up. It writes a line
of JSON for each call and ends when its standard input does.
"""

import asyncio
import contextlib
import http
import json
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import grpc
import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import embedding_service_pb2_grpc

_INTERVAL_S = 0.05
_TIMEOUT_S = 60.0
_TEXT = "The tower is 330 metres tall."
_REQUEST = pb.EmbedRequest(texts=[_TEXT])
_BODY = {"input": _TEXT}


def _report(door: str, began: float, status: str) -> None:
    call = {"door": door, "began": began, "took_s": time.time() - began, "status": status}
    sys.stdout.write(json.dumps(call) + "\n")
    sys.stdout.flush()


async def _call(stub: "embedding_service_pb2_grpc.EmbeddingServiceStub") -> None:
    began = time.time()
    status = "OK"
    try:
        await stub.Embed(_REQUEST, timeout=_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        status = f"{error.code().name}: {error.details()}"
    _report("grpc", began, status)


async def _call_http(session: aiohttp.ClientSession, target: str) -> None:
    began = time.time()
    try:
        async with session.post(f"http://{target}/v1/embeddings", json=_BODY) as response:
            await response.read()
            status = "OK" if response.status == http.HTTPStatus.OK else str(response.status)
    except (aiohttp.ClientError, TimeoutError) as error:
        status = f"{type(error).__name__}: {error}"
    _report("http", began, status)


async def _until_closed() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def _main(target: str, http_target: str) -> None:
    closed = asyncio.create_task(_until_closed())

    async def repeat(call: Callable[[], Awaitable[None]]) -> None:
        while not closed.done():
            await call()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(closed), _INTERVAL_S)

    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with (
        grpc.aio.insecure_channel(target) as channel,
        aiohttp.ClientSession(timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        stub = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        group.create_task(repeat(lambda: _call(stub)))
        if http_target:
            group.create_task(repeat(lambda: _call_http(session, http_target)))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:3]))
