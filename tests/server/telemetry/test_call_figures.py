"""Calls as the metrics count them, through every door."""

import asyncio
import contextlib
from typing import Any

import grpc.aio
import pytest

from embedgrpc.engine.errors import Reason
from embedgrpc.server.http.dialects.all_routes import all_routes
from embedgrpc.server.telemetry.call_figures import REFUSALS
from embedgrpc.server.telemetry.metrics import Reading
from embedgrpc.v1 import admin_service_pb2 as admin
from embedgrpc.v1 import admin_service_pb2_grpc, common_pb2
from tests.server.conftest import Serve
from tests.server.every_call import CASES
from tests.server.hash_backend import HashBackend
from tests.server.http.example_models import MODELS, model_for
from tests.server.http.http_client import HttpClient
from tests.server.service import CROSS, EMBED, PATIENCE_S, Client, Service, until

EMBED_METHOD = "embedgrpc.v1.EmbeddingService/Embed"
EVERY_DOOR: dict[str, Any] = {"http_address": "127.0.0.1:0", "kserve": True, "admin": True}

Series = tuple[str, tuple[tuple[str, str], ...]]


def series(service: Service) -> dict[Series, float]:
    """The values of all series about calls, by name and labels."""
    return {
        (one.metric, tuple(one.attributes.items())): one.value
        for one in service.server.figures.read()
        if one.metric.startswith(("embedgrpc.call", "embedgrpc.refusals"))
    }


def find(service: Service, metric: str, **attributes: str) -> list[Reading]:
    """The readings of a metric with these attributes that are above zero."""
    return [
        one
        for one in service.server.figures.read()
        if one.metric == metric and one.value and attributes.items() <= one.attributes.items()
    ]


async def ended(service: Service) -> None:
    """Wait until all calls have ended."""
    await until(lambda: not len(service.server.open_calls))


@pytest.mark.long
async def test_every_series_is_there_from_the_start(serve: Serve) -> None:
    """No call of any door, good or bad, makes a series that was not there at zero."""
    service = await serve(EMBED, CROSS, *MODELS, tei_model="embed", max_unary_s=30, **EVERY_DOOR)
    before = series(service)
    assert not any(before.values())
    client = Client(service.address)
    async with client.channel:
        for call in CASES.values():
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call(client)
        make: Any = admin_service_pb2_grpc.AdminServiceStub
        stub = make(client.channel)
        for method, request in (
            (stub.GetStatus, admin.GetStatusRequest()),
            (stub.LoadModel, admin.LoadModelRequest()),
            (stub.LoadModel, admin.LoadModelRequest(model="nobody", source="none/such")),
            (stub.UnloadModel, admin.UnloadModelRequest(model="nobody")),
        ):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await method(request, timeout=PATIENCE_S)
    http = HttpClient(service)
    for route in all_routes():
        path = route.path.replace("{id}", "labels")
        if route.method == "GET":
            await http.get(path)
            continue
        right = model_for(path)
        for model, body in ((right, route.example), ("labels", route.example), ("nobody", {})):
            await http.post(path, body, embedgrpc_model=model)
    await http.get("/v1/models/nobody")
    await http.get("/no/such/path")
    await http.post("/v1/embeddings", b"{")
    await http.post("/v1/embeddings", {"input": ["a", ""]})
    await http.send("DELETE", "/v1/models")
    await http.send("BREW", "/v1/models")
    await ended(service)
    after = series(service)
    assert sorted(after.keys() - before.keys()) == []
    # Probes, reflection and scrapes are no calls.
    methods = {dict(labels).get("method", "") for (_, labels), value in after.items() if value}
    assert not [one for one in methods if "Health" in one or "Ready" in one or "metrics" in one]
    doors = {dict(labels).get("door", "") for (_, labels), value in after.items() if value}
    assert doors >= {"grpc", "tei", "kserve", "http"}


async def test_a_call_counts_once_with_its_work(serve: Serve) -> None:
    """Its count, duration, inputs and tokens have its door, its method and its model."""
    service = await serve(EMBED)
    answer = await service.client.embed("a", "two words")
    with pytest.raises(grpc.aio.AioRpcError):
        await service.client.embed("", model="embed")
    with pytest.raises(grpc.aio.AioRpcError):
        await service.client.embed("a", model="nobody")
    await service.client.status("")
    await ended(service)
    (good,) = find(service, "embedgrpc.calls", status="OK")
    assert good.attributes == {
        "door": "grpc",
        "method": EMBED_METHOD,
        "model": "embed",
        "caller_class": "anonymous",
        "status": "OK",
        "reason": "",
    }
    assert good.value == 1
    bad = [one for one in find(service, "embedgrpc.calls") if one.attributes["reason"]]
    assert {(one.attributes["reason"], one.attributes["model"]) for one in bad} == {
        ("EMPTY_INPUT", "embed"),
        ("MODEL_NOT_FOUND", ""),
    }
    (duration,) = find(service, "embedgrpc.call.duration")
    assert duration.attributes == {"door": "grpc", "method": EMBED_METHOD, "model": "embed"}
    assert duration.value == 1
    (tokens,) = find(service, "embedgrpc.call.tokens")
    assert tokens.value == answer.usage.input_tokens
    counts = {one.attributes["model"]: one.value for one in find(service, "embedgrpc.call.inputs")}
    assert counts["embed"] == 3


async def test_refusals_count_by_reason_and_label(serve: Serve, backend: HashBackend) -> None:
    """A queue that is full shows there, as do open calls."""
    service = await serve(backend=backend, max_queued_inputs=1, health_interval_s=3600)
    assert not find(service, "embedgrpc.refusals")
    backend.hold()
    task = asyncio.ensure_future(service.client.embed("a"))
    await until(lambda: find(service, "embedgrpc.calls.open", door="grpc"))
    await until(lambda: service.admission().inputs)
    with pytest.raises(grpc.aio.AioRpcError):
        await service.client.embed("b")
    await until(lambda: find(service, "embedgrpc.refusals"))
    (refusal,) = find(service, "embedgrpc.refusals")
    assert refusal.attributes == {"reason": "OVERLOADED", "label": "QUEUE_FULL"}
    backend.release()
    await task
    await ended(service)
    assert not find(service, "embedgrpc.calls.open")


def test_the_labels_of_refusals_are_those_of_the_contract() -> None:
    """Each exists, and none of overloads and limits is missing."""
    labels = {
        one.removeprefix("ERROR_LABEL_") for one in common_pb2.ErrorLabel.DESCRIPTOR.values_by_name
    }
    named = {label for some in REFUSALS.values() for label in some if label}
    assert named <= labels
    assert REFUSALS.keys() >= {Reason.OVERLOADED, Reason.RATE_LIMITED}
