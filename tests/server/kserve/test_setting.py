"""The setting that turns the service on, and what depends on it."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from embedgrpc.server.telemetry.call_record import CallRecord
from tests.server.conftest import Serve
from tests.server.failures import failure_of, read_failure
from tests.server.hash_backend import HashBackend
from tests.server.identity.callers import KeyFile, bearer
from tests.server.kserve.requests import KServe, pairs_for, request_for
from tests.server.service import CROSS, EMBED, Service, until
from tests.server.services.test_health import NOT_SERVING, SERVING

NAME = "inference.GRPCInferenceService"


async def test_without_the_setting_there_is_nothing(serve: Serve) -> None:
    """The methods are unknown, and so is their health."""
    service = await serve()
    failure = await failure_of(service.client.send_bytes(f"/{NAME}/ModelInfer", b""))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    unknown = await failure_of(service.client.status(NAME))
    assert unknown.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.long
def test_the_protocol_is_loaded_only_for_the_setting() -> None:
    """A server without it imports none of its messages."""
    program = (
        "import sys, embedgrpc.server.process.server\n"
        "sys.exit(any(name.startswith('tritonclient') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


async def _ready(service: Service, model: str = "") -> bool:
    stub = KServe(service).stub
    if model:
        return bool((await stub.ModelReady(service_pb2.ModelReadyRequest(name=model))).ready)
    return bool((await stub.ServerReady(service_pb2.ServerReadyRequest())).ready)


async def test_it_is_ready_when_it_is_healthy(serve: Serve) -> None:
    """grpc.health.v1 and the protocol's own methods agree, also while the server drains."""
    service = await serve(EMBED, CROSS, kserve=True)
    assert await service.client.status(NAME) == SERVING
    assert await service.client.status(f"{NAME}/cross") == SERVING
    assert await _ready(service)
    assert await _ready(service, "cross")
    await service.server.drain()
    assert await service.client.status(NAME) == NOT_SERVING
    assert not await _ready(service)
    assert not await _ready(service, "embed")
    live = await KServe(service).stub.ServerLive(service_pb2.ServerLiveRequest())
    assert live.live
    assert (await KServe(service).infer(request_for("still served"))).outputs


async def test_a_busy_server_answers_probes(serve: Serve, backend: HashBackend) -> None:
    """Calls take the places of others, and probes take none."""
    service = await serve(backend=backend, kserve=True, max_calls=16)
    kserve = KServe(service)
    backend.hold()
    calls = [asyncio.ensure_future(kserve.infer(request_for(f"{at}"))) for at in range(16)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    refused = await failure_of(done.pop())
    assert (refused.code, refused.label) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS",
    )
    assert refused.retry_delay_s
    assert await _ready(service)
    assert await _ready(service, service.server.catalog.default.id)
    backend.release()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert any(not isinstance(one, BaseException) for one in answers)


async def test_a_model_that_is_away_is_named(serve: Serve) -> None:
    """Its calls may be tried again; its metadata, too."""
    service = await serve(kserve=True)
    kserve = KServe(service)
    catalog = service.server.catalog
    catalog.default.loaded = None
    for call in (
        kserve.infer(request_for("a")),
        kserve.stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=catalog.default.id)),
        kserve.stub.ModelConfig(service_pb2.ModelConfigRequest(name=catalog.default.id)),
    ):
        failure = await failure_of(call)
        assert failure.reason == "BACKEND_UNAVAILABLE"


async def test_calls_are_recorded_as_those_of_other_doors(serve: Serve) -> None:
    """What logs and metrics read: the door, the model, the inputs and tokens, and the status."""
    service = await serve(EMBED, CROSS, kserve=True)
    kserve = KServe(service)
    records: list[CallRecord] = []
    service.server.open_calls.observers.append(lambda call: records.append(call.record))
    answer = await kserve.infer(request_for("a text", "b"))
    await kserve.infer(pairs_for("q", ["a", "b", "c"], model_name="cross"))
    await failure_of(kserve.infer(request_for("a", " ")))
    await failure_of(kserve.stub.TraceSetting(service_pb2.TraceSettingRequest()))
    await _ready(service)
    await until(lambda: len(records) == 5)
    assert {one.door for one in records} == {"kserve"}
    assert [one.status for one in records] == [
        *("OK", "OK", "INVALID_ARGUMENT", "UNIMPLEMENTED", "OK")
    ]
    assert [one.is_probe for one in records] == [False] * 4 + [True]
    assert [one.inputs for one in records] == [2, 3, 2, 0, 0]
    assert records[2].reason == "EMPTY_INPUT"
    assert [model.id for model in records[1].models] == ["cross"]
    assert records[0].tokens == answer.parameters["input_tokens"].int64_param > 0
    assert records[0].works


async def test_a_caller_sees_and_uses_what_it_may(serve: Serve, tmp_path: Path) -> None:
    """The model decides which service ModelInfer is, and lists leave other models out."""
    keys = KeyFile(tmp_path)
    embeds = keys.add("embeds", 'services = ["embed"]')
    narrow = keys.add("narrow", 'models = ["embed"]')
    service = await serve(EMBED, CROSS, kserve=True, **keys.settings)
    stub = KServe(service).stub
    pairs = pairs_for("q", ["a"], model_name="cross")

    async def answer(call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            return read_failure(error).label

    assert await answer(stub.ModelInfer(request_for("a"))) == "NO_CREDENTIALS"
    assert (await stub.ModelInfer(request_for("a"), metadata=[bearer(embeds)])).outputs
    assert await answer(stub.ModelInfer(pairs, metadata=[bearer(embeds)])) == "SERVICE_DENIED"
    assert await answer(stub.ModelInfer(pairs, metadata=[bearer(narrow)])) == "MODEL_DENIED"
    metadata = service_pb2.ModelMetadataRequest(name="cross")
    assert await answer(stub.ModelMetadata(metadata, metadata=[bearer(narrow)])) == "MODEL_DENIED"
    index = await stub.RepositoryIndex(
        service_pb2.RepositoryIndexRequest(), metadata=[bearer(narrow)]
    )
    assert [one.name for one in index.models] == ["embed"]
    totals = await stub.ModelStatistics(
        service_pb2.ModelStatisticsRequest(), metadata=[bearer(narrow)]
    )
    assert [one.name for one in totals.model_stats] == ["embed"]


async def test_a_model_without_vectors_and_scores_has_no_place(serve: Serve) -> None:
    """It is never ready, and calls say where to go. Such is an encoder of documents alone."""
    service = await serve(kserve=True)
    served = service.server.catalog.default
    served.loaded = replace(served.ready(), embedder=None, reranker=None, classifier=None)
    await service.server._monitor.publish()
    assert not await _ready(service, served.id)
    failure = await failure_of(KServe(service).infer(request_for("a")))
    assert (failure.code, failure.label) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_TASK")
