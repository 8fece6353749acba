import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from embedgrpc.backends.base import BackendError
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.models.kinds import WeightType
from embedgrpc.server.process.server import Server
from embedgrpc.v1 import model_service_pb2 as models
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import WIDTH, HashBackend, vector_of
from tests.server.service import CROSS, EMBED, PATIENCE_S, Client, settings_for, until

EMBEDDING = "embedgrpc.v1.EmbeddingService"
RERANK = "embedgrpc.v1.RerankService"
MODEL = "embedgrpc.v1.ModelService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
# Each health check then runs its own canary.
QUICK = {"health_interval_s": 0.02, "health_timeout_s": 0.2}


class Watcher:
    """A Watch of one service."""

    def __init__(self, client: Client, service: str) -> None:
        request = health_pb2.HealthCheckRequest(service=service)
        self.call: Any = client.health.Watch(request)

    async def next(self) -> int:
        """Wait for the next status and return it."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.call.read()
        assert message is not grpc.aio.EOF
        status: int = message.status
        return status


async def test_every_service_and_model_has_a_name(serve: Serve) -> None:
    """The process, the services, and each service with each name of each model it serves."""
    service = await serve(EMBED.model_copy(update={"aliases": ("also",)}), CROSS)
    status = service.client.status
    for name in ("", EMBEDDING, RERANK, MODEL, f"{EMBEDDING}/embed", f"{EMBEDDING}/also"):
        assert await status(name) == SERVING, name
    for name in (f"{RERANK}/embed", f"{RERANK}/also", f"{RERANK}/cross"):
        assert await status(name) == SERVING, name
    # A cross-encoder does not embed.
    assert await status(f"{EMBEDDING}/cross") == NOT_SERVING


@pytest.mark.parametrize("name", ["nobody", f"{EMBEDDING}/nobody", f"{MODEL}/embed", "\u202e\0"])
async def test_an_unknown_name(serve: Serve, name: str) -> None:
    """Check says NOT_FOUND; Watch says SERVICE_UNKNOWN and stays."""
    service = await serve()
    failure = await failure_of(
        service.client.health.Check(health_pb2.HealthCheckRequest(service=name))
    )
    assert failure.code is grpc.StatusCode.NOT_FOUND
    watcher = Watcher(service.client, name)
    assert await watcher.next() == UNKNOWN
    await service.check_alive()
    assert not watcher.call.done()


async def test_a_model_is_not_serving_until_it_has_answered(
    backend: HashBackend, cache_dir: Any
) -> None:
    """While models load, the process is SERVING, they are not, and calls fail with UNAVAILABLE."""
    backend.hold()
    settings = settings_for(EMBED, cache_dir=cache_dir)
    async with Server(settings, open_backend=backend.open) as server:
        client = Client(server.address)
        async with client.channel:
            watcher = Watcher(client, f"{EMBEDDING}/embed")
            assert await watcher.next() == NOT_SERVING
            loading = asyncio.ensure_future(server.load())
            assert await asyncio.to_thread(backend.running.wait, PATIENCE_S)
            assert await client.status("") == SERVING
            assert await client.status(MODEL) == SERVING
            assert await client.status(EMBEDDING) == NOT_SERVING
            failure = await failure_of(client.embed("a text"))
            assert failure.code is grpc.StatusCode.UNAVAILABLE
            assert failure.reason == "BACKEND_UNAVAILABLE"
            assert failure.retry_delay_s == 2.0
            assert failure.pushback_ms == "2000"
            listing = await client.models.GetModel(models.GetModelRequest(model="embed"))
            assert listing.model.state == models.MODEL_STATE_LOADING
            backend.release()
            await loading
            assert await watcher.next() == SERVING
            assert await client.status(EMBEDDING) == SERVING
            await client.embed("a text")
            listing = await client.models.GetModel(models.GetModelRequest(model="embed"))
            assert listing.model.state == models.MODEL_STATE_READY
            watcher.call.cancel()


def _nan(_ids: IntArray) -> FloatArray:
    return np.full(WIDTH, np.nan, np.float32)


def _other(ids: IntArray) -> FloatArray:
    return vector_of(ids[::-1].copy())


def _narrow(ids: IntArray) -> FloatArray:
    return vector_of(ids)[:5]


def _scalar(_ids: IntArray) -> FloatArray:
    return np.array(1, np.float32)


def _fail(_ids: IntArray) -> FloatArray:
    raise BackendError("away")


def _crash(_ids: IntArray) -> FloatArray:
    raise ZeroDivisionError


@pytest.mark.parametrize("garbage", [_nan, _other, _narrow, _scalar, _fail, _crash])
async def test_a_model_that_answers_garbage_stops_serving(
    serve: Serve, backend: HashBackend, garbage: Callable[[IntArray], FloatArray]
) -> None:
    """The canary notices: its services are NOT_SERVING and refuse calls until it passes again."""
    service = await serve(backend=backend, **QUICK)
    watchers = [Watcher(service.client, name) for name in (EMBEDDING, RERANK, f"{EMBEDDING}/embed")]
    assert [await watcher.next() for watcher in watchers] == [SERVING] * 3
    backend.answer = garbage
    assert [await watcher.next() for watcher in watchers] == [NOT_SERVING] * 3
    failure = await failure_of(service.client.embed("a text"))
    assert failure.reason == "BACKEND_UNAVAILABLE"
    listing = await service.client.models.GetModel(models.GetModelRequest(model="embed"))
    assert listing.model.state == models.MODEL_STATE_UNAVAILABLE
    # The process is alive: restarting it is not the answer.
    assert await service.client.status("") == SERVING
    assert await service.client.status(MODEL) == SERVING
    backend.answer = vector_of
    assert [await watcher.next() for watcher in watchers] == [SERVING] * 3
    await service.check_alive()


def _tilted(ids: IntArray) -> FloatArray:
    """Return a vector of the right length, at a cosine of 0.92 from the right one."""
    vector = vector_of(ids)
    aside = np.roll(vector, 1) * np.resize([1, -1], WIDTH)
    aside -= vector * (aside @ vector) / (vector @ vector)
    aside *= np.linalg.norm(vector) / np.linalg.norm(aside)
    return np.asarray(0.92 * vector + (1 - 0.92**2) ** 0.5 * aside, np.float32)


async def test_a_quantised_model_may_deviate(serve: Serve, backend: HashBackend) -> None:
    """A row may depend on its neighbours in the batch; the row of another text is still noticed."""
    model = EMBED.model_copy(update={"weight_type": WeightType.INT8})
    service = await serve(model, backend=backend, **QUICK)
    watcher = Watcher(service.client, f"{EMBEDDING}/embed")
    assert await watcher.next() == SERVING
    backend.answer = _tilted
    seen = len(backend.batches)
    await until(lambda: len(backend.batches) > seen + 3)
    assert await service.client.status(f"{EMBEDDING}/embed") == SERVING
    backend.answer = _other
    assert await watcher.next() == NOT_SERVING


async def test_a_model_that_hangs_stops_serving(serve: Serve, backend: HashBackend) -> None:
    """A run that hangs is noticed, and so is its end."""
    service = await serve(backend=backend, **QUICK)
    watcher = Watcher(service.client, f"{EMBEDDING}/embed")
    assert await watcher.next() == SERVING
    backend.hold()
    assert await watcher.next() == NOT_SERVING
    assert await service.client.status("") == SERVING
    backend.release()
    assert await watcher.next() == SERVING
    await service.check_alive()
    assert service.admission().inputs <= 1


async def test_a_watcher_that_leaves_takes_nobody_with_it(
    serve: Serve, backend: HashBackend
) -> None:
    """When one of two watchers leaves, the other still receives changes."""
    service = await serve(backend=backend, **QUICK)
    leaving, staying = (Watcher(service.client, EMBEDDING) for _ in range(2))
    assert await leaving.next() == await staying.next() == SERVING
    leaving.call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving.call.code() and await leaving.call.read()
    backend.answer = _fail
    assert await staying.next() == NOT_SERVING
    backend.answer = vector_of
    assert await staying.next() == SERVING


async def test_health_answers_while_the_queue_is_full(serve: Serve, backend: HashBackend) -> None:
    """An overloaded server answers probes at once, with SERVING."""
    service = await serve(backend=backend, max_queued_inputs=4)
    backend.hold()
    calls = [asyncio.ensure_future(service.client.embed("a text")) for _ in range(4)]
    await until(lambda: service.admission().inputs == 4)
    refused = await asyncio.gather(*(failure_of(service.client.embed("x")) for _ in range(50)))
    assert {failure.reason for failure in refused} == {"OVERLOADED"}
    probes = await asyncio.gather(*(service.client.status(EMBEDDING) for _ in range(50)))
    assert set(probes) == {SERVING}
    assert await Watcher(service.client, EMBEDDING).next() == SERVING
    backend.release()
    await asyncio.gather(*calls)


async def test_a_busy_model_needs_no_canary(serve: Serve, backend: HashBackend) -> None:
    """Calls alone run no canary: it runs at the health interval only."""
    service = await serve(backend=backend, health_interval_s=3600)
    before = len(backend.batches)
    for _ in range(5):
        await service.client.embed("a text")
    assert len(backend.batches) == before + 5


async def test_watchers_hear_of_the_stop_and_do_not_hold_it_up(
    serve: Serve, backend: HashBackend
) -> None:
    """A stop sends NOT_SERVING, then ends the streams of watchers; the grace is not used up."""
    service = await serve(backend=backend, shutdown_grace_s=3600, shutdown_timeout_s=3700)
    names = ("", EMBEDDING, MODEL, "nobody")
    watchers = [Watcher(service.client, name) for name in names]
    assert [await watcher.next() for watcher in watchers] == [SERVING] * 3 + [UNKNOWN]
    async with asyncio.timeout(PATIENCE_S):
        await service.server.drain()
        await service.server.__aexit__(None, None, None)
    assert [await watcher.next() for watcher in watchers[:3]] == [NOT_SERVING] * 3
    for watcher in watchers:
        failure = await failure_of(watcher.call.read())
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "SHUTTING_DOWN"


async def test_nothing_serves_again_once_the_stop_has_begun(
    serve: Serve, backend: HashBackend
) -> None:
    """A model that recovers, or a service that is set, during a stop stays NOT_SERVING."""
    service = await serve(backend=backend)
    watcher = Watcher(service.client, EMBEDDING)
    assert await watcher.next() == SERVING
    await service.server.drain()
    assert await watcher.next() == NOT_SERVING
    await service.server._monitor.begin()
    await service.server._health.set("another", serving=True)
    for name in ("", EMBEDDING, MODEL, f"{EMBEDDING}/embed", "another"):
        assert await service.client.status(name) == NOT_SERVING
