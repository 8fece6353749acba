"""AdminService: who may use it, and what it does with the models."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedgrpc.client import AsyncClient, ModelNotFoundError, UnsupportedError
from embedgrpc.client.cli import main
from embedgrpc.server.settings.configuration import SettingsError, configure
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import admin_service_pb2 as pb
from embedgrpc.v1 import admin_service_pb2_grpc
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.identity.callers import KeyFile
from tests.server.service import CROSS, EMBED, FIXTURES, PATIENCE_S, Service, until

NLI = str(FIXTURES / "classify-nli")


def admin_of(service: Service) -> Any:
    """Return the stub of the service."""
    stub: Any = admin_service_pb2_grpc.AdminServiceStub
    return stub(service.client.channel)


@pytest.fixture
async def service(serve: Serve) -> Service:
    """A server on a loopback address that may be administrated."""
    return await serve(EMBED, CROSS, admin=True)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncClient]:
    """The client of users."""
    async with AsyncClient(service.address, timeout_s=PATIENCE_S) as one:
        yield one


async def test_it_is_off_by_default(serve: Serve) -> None:
    """Without the setting there is no such service."""
    service = await serve(EMBED)
    failure = await failure_of(admin_of(service).GetStatus(pb.GetStatusRequest()))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED


def test_it_needs_authentication_where_others_reach_it() -> None:
    """On a network's address the server does not start without keys."""
    with pytest.raises(SettingsError, match="admin needs authentication"):
        configure({"admin": True, "address": "0.0.0.0:50051"}, None)
    assert configure({"admin": True, "address": "unix:/tmp/one"}, None).settings.admin
    keys = {"admin": True, "address": "0.0.0.0:50051", "api_keys_file": "/keys"}
    assert configure(keys, None).settings.admin


async def test_callers_need_the_scope(serve: Serve, tmp_path: Path) -> None:
    """A key without it is refused, and so is a call without a key."""
    keys = KeyFile(tmp_path)
    ordinary = keys.add("ordinary")
    operator = keys.add("operator", 'scopes = ["admin"]')
    service = await serve(EMBED, admin=True, **keys.settings)
    admin = admin_of(service)
    for key, code in (
        (None, grpc.StatusCode.UNAUTHENTICATED),
        (ordinary, grpc.StatusCode.PERMISSION_DENIED),
    ):
        metadata = (("x-api-key", key),) if key else ()
        for call, request in (
            (admin.GetStatus, pb.GetStatusRequest()),
            (admin.LoadModel, pb.LoadModelRequest(source=NLI)),
            (admin.UnloadModel, pb.UnloadModelRequest(model="embed")),
        ):
            assert (await failure_of(call(request, metadata=metadata))).code is code
    response = await admin.GetStatus(pb.GetStatusRequest(), metadata=(("x-api-key", operator),))
    assert [one.id for one in response.status.models] == ["embed"]


async def test_a_model_is_loaded_and_unloaded(service: Service, client: AsyncClient) -> None:
    """It is served with its settings and aliases, and afterwards unknown."""
    loaded = await client.load_model(
        "nli", source=NLI, aliases=["entailment"], settings={"max_tokens": 40, "lowercase": True}
    )
    assert (loaded.id, loaded.aliases, loaded.state) == ("nli", ("entailment",), "ready")
    assert loaded.load_s > 0
    assert loaded.weight_bytes > 0
    assert (await client.get_model("entailment")).max_tokens == 40
    await client.classify(["a text"], model="entailment")
    await client.unload_model("entailment")
    with pytest.raises(ModelNotFoundError):
        await client.classify(["a text"], model="nli")
    assert [one.id for one in (await client.get_status()).models] == ["embed", "cross"]
    assert service.server.catalog.draining == ()


async def test_a_model_is_loaded_again(client: AsyncClient) -> None:
    """With the settings that it has, or with others; its place in the list stays."""
    before = (await client.get_status()).models[0]
    again = await client.load_model("embed")
    assert (again.source, again.fingerprint) == (before.source, before.fingerprint)
    other = await client.load_model("embed", source=EMBED.source, settings={"max_tokens": 9})
    assert other.fingerprint != before.fingerprint
    models = (await client.get_status()).models
    assert [one.id for one in models if not one.closing] == ["embed", "cross"]
    await client.embed(["a text"])


@pytest.mark.parametrize(
    ("request_", "field", "named"),
    [
        (pb.LoadModelRequest(model="embed", aliases=["x"]), "source", "source is empty"),
        (pb.LoadModelRequest(model=""), "model", "model is empty"),
        (pb.LoadModelRequest(model="a b", source=NLI), "model", "letters"),
        (pb.LoadModelRequest(source=NLI, aliases=[""]), "aliases.0", "must not be empty"),
    ],
)
async def test_requests_that_break_a_rule(
    service: Service, request_: pb.LoadModelRequest, field: str, named: str
) -> None:
    """The field is named."""
    failure = await failure_of(admin_of(service).LoadModel(request_))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))
    assert named in failure.details


async def test_settings_of_a_model_that_are_wrong(service: Service) -> None:
    """An unknown one, a wrong value, and one that has a field of its own."""
    for settings, field in (
        ({"wieght_type": "int8"}, "settings.wieght_type"),
        ({"weight_type": "int7"}, "settings.weight_type"),
        ({"max_tokens": 1.5}, "settings.max_tokens"),
        ({"source": "x"}, "settings.source"),
    ):
        request = pb.LoadModelRequest(source=NLI)
        request.settings.update(settings)
        failure = await failure_of(admin_of(service).LoadModel(request))
        assert (failure.reason, failure.fields) == ("INVALID_REQUEST", (field,)), field


async def test_changes_that_are_refused(service: Service, client: AsyncClient) -> None:
    """Nothing changes, and the reason names what is wrong."""
    for call, named in (
        (client.unload_model("embed"), "default model"),
        (client.load_model("no", source="/nowhere/at/all"), "no: "),
        (client.load_model("x", source=NLI, aliases=["cross"]), "'cross'"),
    ):
        with pytest.raises(UnsupportedError, match=named) as caught:
            await call
        assert caught.value.metadata["label"] == "MODEL_NOT_CHANGED"
    with pytest.raises(ModelNotFoundError):
        await client.unload_model("nobody")
    with pytest.raises(ModelNotFoundError):
        await client.load_model("nobody")
    assert [one.id for one in service.server.catalog] == ["embed", "cross"]


async def test_the_status_of_work_in_progress(serve: Serve, backend: HashBackend) -> None:
    """Calls, queues, models that are closed and loaded, and the last reload."""
    keep = ModelSettings(id="keep", source=EMBED.source)
    service = await serve(keep, EMBED, backend=backend, admin=True)
    async with AsyncClient(service.address, timeout_s=PATIENCE_S) as client:
        backend.hold()
        call = asyncio.ensure_future(service.client.embed("one", "two", model="embed"))
        await asyncio.to_thread(backend.running.wait, PATIENCE_S)
        unloading = asyncio.ensure_future(client.unload_model("embed"))
        await until(lambda: service.server.catalog.draining)
        status = await client.get_status()
        kept, closing = status.models
        assert (kept.id, kept.closing) == ("keep", False)
        assert (closing.id, closing.closing) == ("embed", True)
        assert (closing.open_calls, closing.queued_inputs, kept.open_calls) == (1, 2, 0)
        assert closing.queued_tokens > 2
        assert closing.queue_s > 0
        assert status.open_calls == 3
        assert not status.overloaded
        assert status.resident_bytes > 1_000_000
        assert status.uptime_s >= 0
        assert status.last_reload is None
        backend.release()
        await call
        await unloading
        service.server.reloading.request()
        await until(lambda: service.server.reloading.last)
        last = (await client.get_status()).last_reload
        assert last is not None
        assert (last.problem, last.needs_restart) == ("", ())


async def test_a_caller_that_leaves_does_not_end_the_load(
    serve: Serve, backend: HashBackend
) -> None:
    """The model is served in the end."""
    service = await serve(EMBED, backend=backend, admin=True)
    backend.hold()
    request = pb.LoadModelRequest(model="late", source=EMBED.source)
    failure = await failure_of(admin_of(service).LoadModel(request, timeout=0.3))
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    response = await admin_of(service).GetStatus(pb.GetStatusRequest())
    assert [one.id for one in response.status.models] == ["embed", "late"]
    assert response.status.models[1].state == 1
    backend.release()
    await until(lambda: service.server.catalog.get("late"))
    await service.client.embed("a text", model="late")


async def test_the_commands(service: Service) -> None:
    """load, status and unload of embedgrpc-client."""

    def run(*arguments: str) -> Any:
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            assert main([*arguments, "--target", service.address]) == 0
        return json.loads(written.getvalue() or "null")

    loaded = await asyncio.to_thread(
        run, "load", "nli", "--source", NLI, "--alias", "x", "--setting", "max_tokens=40"
    )
    assert (loaded["id"], loaded["aliases"], loaded["state"]) == ("nli", ["x"], "ready")
    status = await asyncio.to_thread(run, "status")
    assert [one["id"] for one in status["models"]] == ["embed", "cross", "nli"]
    assert status["start_time"].endswith("+00:00")
    await asyncio.to_thread(run, "unload", "x")
    status = await asyncio.to_thread(run, "status")
    assert [one["id"] for one in status["models"]] == ["embed", "cross"]
