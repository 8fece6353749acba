"""Shares of a full queue, as clients of both ports meet them."""

import asyncio
from typing import Any

import grpc
import pytest

from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.service import PATIENCE_S, Service, until

CALLER = "x-caller"
TEXTS_OF_A_CALL = 64
# The limit, in calls.
CALLS_MAX = 8


class Flood:
    """Calls of four callers that fill the queue; the last of them came over gRPC or HTTP."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._http = HttpClient(service)
        self._calls: list[asyncio.Task[Any]] = []

    async def fill(self, *, last_over_http: bool) -> "asyncio.Task[Any]":
        """Fill the queue; return the call of the largest caller that came last."""
        for number in range(CALLS_MAX - 1):
            await self._add(self._over_grpc(f"caller {number % 3}", number))
        over = self._over_http if last_over_http else self._over_grpc
        return await self._add(over("caller 0", CALLS_MAX))

    async def others(self, but: "asyncio.Task[Any]") -> int:
        """Wait for all calls but one; return how many there were."""
        rest = [one for one in self._calls if one is not but]
        await asyncio.gather(*rest)
        return len(rest)

    async def _add(self, call: Any) -> "asyncio.Task[Any]":
        self._calls.append(asyncio.ensure_future(call))
        count = len(self._calls)
        await until(lambda: self._service.admission().inputs == count * TEXTS_OF_A_CALL)
        return self._calls[-1]

    async def _over_grpc(self, caller: str, number: int) -> Any:
        return await self._service.client.embedding.Embed(
            pb.EmbedRequest(texts=_texts(number)), timeout=PATIENCE_S, metadata=[(CALLER, caller)]
        )

    async def _over_http(self, caller: str, number: int) -> Any:
        return await self._http.post("/v1/embeddings", {"input": _texts(number)}, x_caller=caller)


def _texts(number: int) -> list[str]:
    return [f"text {number} {one}" for one in range(TEXTS_OF_A_CALL)]


@pytest.mark.parametrize("over_http", [False, True])
async def test_a_full_queue_lets_a_modest_caller_in(
    serve: Serve, backend: HashBackend, *, over_http: bool
) -> None:
    """The newest call of the largest caller is told to retry; all others are answered."""
    service = await serve(
        backend=backend,
        http_address="127.0.0.1:0",
        caller_metadata=CALLER,
        max_queued_inputs=CALLS_MAX * TEXTS_OF_A_CALL,
    )
    backend.hold()
    flood = Flood(service)
    last = await flood.fill(last_over_http=over_http)
    http = HttpClient(service)
    one_more = await http.post("/v1/embeddings", {"input": "a"}, x_caller="caller 0")
    assert (one_more.status, one_more.json["error"]["code"]) == (429, "overloaded")
    modest = asyncio.ensure_future(
        http.post("/v1/embeddings", {"input": "a modest text"}, x_caller="modest")
    )
    async with asyncio.timeout(PATIENCE_S):
        if over_http:
            reply = await last
            assert (reply.status, reply.json["error"]["code"]) == (429, "overloaded")
            assert "gave way" in reply.json["error"]["message"]
            assert int(reply.headers["retry-after-ms"]) > 0
        else:
            failure = await failure_of(last)
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (failure.reason, failure.label) == ("OVERLOADED", "QUEUE_FULL")
            assert failure.retry_delay_s
        backend.release()
        assert (await modest).status == 200
        assert await flood.others(last) == CALLS_MAX - 1
    await until(lambda: service.admission().ledger.is_empty)
