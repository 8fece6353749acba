"""Triton's own client in Python, sync and asyncio, against a real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.server.service import PATIENCE_S, Service, until

pytestmark = pytest.mark.asyncio(loop_scope="package")

TEXTS = ["The café opens at nine. 東京", "a", "tea"]


def text_input(texts: list[str], name: str = "text") -> Any:
    """Return an input of shape [n, 1], as the documentation of NVIDIA NIM makes it."""
    values = np.array([[text.encode()] for text in texts], np.object_)
    made = triton.InferInput(name, values.shape, "BYTES")
    made.set_data_from_numpy(values)
    return made


@pytest_asyncio.fixture(loop_scope="package")
async def client(service: Service) -> AsyncIterator[Any]:
    """The client for asyncio."""
    async with triton_aio.InferenceServerClient(service.address) as one:
        yield one


async def vectors_of(service: Service, texts: list[str]) -> Any:
    """Return the vectors of embedgrpc.v1."""
    answer = await service.client.embed(*texts)
    return np.array([one.dense.values for one in answer.embeddings], np.float32)


async def test_asyncio_infer(service: Service, client: Any) -> None:
    """With an id, parameters, a priority, a timeout and outputs, as NIM's documentation does."""
    result = await client.infer(
        "embed",
        [text_input(TEXTS)],
        outputs=[triton.InferRequestedOutput(name) for name in ("token_count", "embeddings")],
        request_id="1",
        priority=1,
        timeout=60_000_000,
        client_timeout=PATIENCE_S,
        parameters={"truncate": "END", "embedding_type": "float"},
    )
    assert np.array_equal(result.as_numpy("embeddings"), await vectors_of(service, TEXTS))
    assert result.as_numpy("token_count").shape == (3,)
    assert result.as_numpy("embedding") is None
    assert result.get_response().id == "1"


async def test_sync_infer(service: Service) -> None:
    """From a thread, with the vectors of embedgrpc.v1, and an error as the client's exception."""

    def work() -> tuple[Any, InferenceServerException]:
        with triton.InferenceServerClient(service.address) as client:
            flat = np.array(TEXTS, np.object_)
            one = triton.InferInput("text", flat.shape, "BYTES")
            one.set_data_from_numpy(flat)
            found = client.infer("embed", [one], client_timeout=PATIENCE_S).as_numpy("embedding")
            futures: list[Any] = []
            client.async_infer(
                "embed", [one], lambda result, error: futures.append((result, error))
            )
            with pytest.raises(InferenceServerException) as caught:
                client.infer("embed", [text_input(["a", " "])], client_timeout=PATIENCE_S)
        return found, caught.value

    found, error = await asyncio.to_thread(work)
    assert np.array_equal(found, await vectors_of(service, TEXTS))
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.message().startswith("text[1] holds no text")


async def test_scores(client: Any) -> None:
    """One for each pair of query and text."""
    inputs = [text_input(["hot drinks"] * 2, "query"), text_input(["a bicycle", "tea is hot"])]
    result = await client.infer("cross", inputs, client_timeout=PATIENCE_S)
    assert result.as_numpy("score").shape == (2, 1)


async def test_what_load_generators_ask(service: Service, client: Any) -> None:
    """The extensions, the tensors, the largest batch and the totals."""
    assert "statistics" in (await client.get_server_metadata()).extensions
    metadata = await client.get_model_metadata("embed")
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("text", "BYTES", [-1, 1])
    ]
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [
        ("embedding", "FP32", [-1, 36]),
        ("token_count", "INT32", [-1]),
    ]
    config = (await client.get_model_config("embed", as_json=True))["config"]
    assert config["max_batch_size"] == 32
    assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": ["1"]}]
    labelled = (await client.get_model_config("classify-nli")).config
    assert len(json.loads(labelled.parameters["labels"].string_value)) == labelled.output[0].dims[0]
    assert [(one.name, one.optional) for one in labelled.input] == [
        ("text", False),
        ("text_pair", True),
    ]
    before = (await client.get_inference_statistics("embed")).model_stats[0]
    await client.infer("embed", [text_input(["some", "new", "words"])])
    with pytest.raises(InferenceServerException):
        await client.infer("embed", [text_input([" "])])
    # A batch is counted once its answers are on their way.
    inputs = before.inference_count + 3
    await until(lambda: service.server._statistics.totals("embed").inputs == inputs)
    (after,) = (await client.get_inference_statistics("embed")).model_stats
    assert after.inference_count == inputs
    assert after.execution_count - before.execution_count == 1
    grown, was = after.inference_stats, before.inference_stats
    assert grown.success.count - was.success.count == 1
    assert grown.fail.count - was.fail.count == 1
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    took = [getattr(grown, part).ns - getattr(was, part).ns for part in parts]
    assert all(took)
    assert sum(took) == grown.success.ns - was.success.ns
    assert sum(one.compute_infer.count for one in after.batch_stats) == after.execution_count
    everything = await client.get_inference_statistics()
    assert len(everything.model_stats) == 5


async def test_probes_and_the_index(client: Any) -> None:
    """What deployments ask before they send work."""
    assert await client.is_server_live()
    assert await client.is_server_ready()
    ready = {
        name: await client.is_model_ready(name)
        for name in ("embed", "cross", "splade-bert", "classify-nli", "none")
    }
    assert ready == {
        "embed": True,
        "cross": True,
        "splade-bert": True,
        "classify-nli": True,
        "none": False,
    }
    assert await client.is_model_ready("embed", "1")
    assert not await client.is_model_ready("embed", "2")
    index = (await client.get_model_repository_index()).models
    assert {(one.name, one.version, one.state) for one in index} >= {("embed", "1", "READY")}


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda client: client.load_model("embed"), "the models are those of the settings"),
        (lambda client: client.unload_model("embed"), "the models are those of the settings"),
        (
            lambda client: client.register_system_shared_memory("name", "key", 3),
            "send tensors in the request",
        ),
        (lambda client: client.get_cuda_shared_memory_status(), "send tensors in the request"),
        (lambda client: client.update_trace_settings("embed", {}), "OpenTelemetry"),
        (lambda client: client.get_log_settings(), "those of the server"),
    ],
)
async def test_methods_that_are_not_served_say_why(client: Any, call: Any, why: str) -> None:
    """With the status that such clients know."""
    with pytest.raises(InferenceServerException, match="is not served") as caught:
        await call(client)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert why in caught.value.message()


async def test_streams_are_not_served(client: Any) -> None:
    """The error names what to call instead. The client for asyncio does not translate it."""

    async def requests() -> AsyncIterator[Any]:
        yield {"model_name": "embed", "inputs": [text_input(["a"])]}

    with pytest.raises(grpc.aio.AioRpcError, match="call ModelInfer") as caught:
        async for _ in client.stream_infer(requests()):
            pass
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
