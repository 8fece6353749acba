"""Clients that others wrote, in an environment of their own, against the HTTP port.

Each is a program that gets its task as JSON and prints what it got as JSON in its last line.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.server.rates.limits import RateLimits
from embedgrpc.server.rates.rates import Rates
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2, embedding_service_pb2, rerank_service_pb2
from tests.clients.environment import EnvironmentMissingError, find_command
from tests.server.hash_backend import HashBackend
from tests.server.identity.callers import KeyFile
from tests.server.rates.clock import Clock
from tests.server.service import CROSS, EMBED, PATIENCE_S, Service, serving, settings_for, until

pytestmark = [pytest.mark.clients, pytest.mark.long, pytest.mark.timeout(4 * PATIENCE_S)]

TEXTS = ["a first text", "another one, which is longer", "Größe, 大きさ und \U0001f600"]
QUERY = "how tall is the tower?"
DOCUMENTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]
SECOND = ModelSettings(id="org/second", source=EMBED.source)
# Nothing is sent to anybody but the server.
QUIET = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


@pytest.fixture
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server whose default model embeds, for all that can name a model."""
    settings = settings_for(EMBED, CROSS, SECOND, cache_dir=cache_dir, http_address="127.0.0.1:0")
    async with serving(settings) as one:
        yield one


@pytest.fixture
async def ranking(cache_dir: Path) -> AsyncIterator[Service]:
    """A server whose only model ranks, for clients of text-embeddings-inference."""
    settings = settings_for(CROSS, cache_dir=cache_dir, http_address="127.0.0.1:0")
    async with serving(settings) as one:
        yield one


def _command(program: str) -> tuple[list[str], Path]:
    try:
        return find_command(program)
    except EnvironmentMissingError as obstacle:
        if os.environ.get("CI"):
            pytest.fail(str(obstacle))
        pytest.skip(str(obstacle))


@asynccontextmanager
async def _started(program: str, **task: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    command, folder = _command(program)
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **QUIET},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # A long line of vectors.
        limit=2**24,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps({"texts": TEXTS, **task}).encode())
        process.stdin.close()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _run(program: str, service: Service, ranking: Service | None = None) -> Any:
    """Run a client; return what it printed."""
    task = {"url": _url(service), "query": QUERY, "documents": DOCUMENTS}
    if ranking is not None:
        task["ranking_url"] = _url(ranking)
    async with _started(program, **task) as process:
        assert process.stdout is not None
        output = await process.stdout.read()
        assert await process.wait() == 0
    return json.loads(output.splitlines()[-1])


def _url(service: Service) -> str:
    return f"http://{service.server.http_address}"


async def _vectors(service: Service, **options: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    request = embedding_service_pb2.EmbedOptions(**options)
    answer = await service.client.embed(*TEXTS, options=request)
    return np.asarray([one.dense.values for one in answer.embeddings], np.float32)


async def _check_embeddings(printed: Mapping[str, Any], service: Service) -> None:
    """Every list of vectors is equal to gRPC's, bit for bit."""
    expected = await _vectors(service)
    assert printed["embeddings"]
    for way, vectors in printed["embeddings"].items():
        assert np.array_equal(np.asarray(vectors, np.float32), expected), way


async def _check_rankings(printed: Mapping[str, Any], service: Service) -> None:
    """Every ranking has gRPC's order and scores."""
    ranked = await service.client.rerank.Rerank(
        rerank_service_pb2.RerankRequest(model="cross", query=QUERY, documents=DOCUMENTS)
    )
    expected = [[one.index, np.float32(one.score)] for one in ranked.results]
    assert printed["rankings"]
    for way, ranking in printed["rankings"].items():
        assert [[index, np.float32(score)] for index, score in ranking] == expected, way


async def test_openai_for_python(service: Service) -> None:
    """Both of its clients get both formats, the options, the models, and errors by class."""
    printed = await _run("openai_sdk.py", service)
    await _check_embeddings(printed, service)
    _check_equal(printed["short"], await _vectors(service, dimensions=8))
    query = await _vectors(service, input_type=common_pb2.INPUT_TYPE_QUERY, normalize=False)
    _check_equal(printed["query"], query)
    _check_equal(printed["one"], (await _vectors(service))[:1])
    answer = await service.client.embed(*TEXTS)
    assert (printed["model"], printed["tokens"]) == ("embed", answer.usage.input_tokens)
    assert printed["models"] == [["embed", "cross", "org/second"]] * 2
    assert printed["retrieved"] == "org/second"
    failures = printed["failures"]
    for name, kind, status, code, param in (
        ("model", "NotFoundError", 404, "model_not_found", "model"),
        ("dimensions", "BadRequestError", 400, "invalid_request", "dimensions"),
        ("empty", "BadRequestError", 400, "invalid_request", "input"),
        ("tokens", "BadRequestError", 400, "invalid_request", "input"),
        ("format", "BadRequestError", 400, "invalid_request", "encoding_format"),
    ):
        found = failures[name]
        assert (found["class"], found["status"]) == (kind, status), found
        assert (found["code"], found["param"]) == (code, param), found
    assert "'nobody'" in failures["model"]["message"]


async def test_openai_with_keys(cache_dir: Path, tmp_path: Path) -> None:
    """A key goes where the client has one; a wrong one and a forbidden model are its own errors."""
    keys = KeyFile(tmp_path)
    key = keys.add("one", 'models = ["embed"]')
    settings = settings_for(
        EMBED, SECOND, cache_dir=cache_dir, http_address="127.0.0.1:0", **keys.settings
    )
    attempts = [(key, "embed"), ("eg_wrong", "embed"), (key, SECOND.id)]
    async with (
        serving(settings) as service,
        _started("openai_key.py", url=_url(service), attempts=attempts, texts=TEXTS) as process,
    ):
        assert process.stdout is not None
        printed = json.loads(await process.stdout.read())
    assert printed == [
        len(TEXTS),
        ["AuthenticationError", 401, "unauthenticated", "authentication_error"],
        ["PermissionDeniedError", 403, "permission_denied", "permission_error"],
    ]


async def test_openai_for_node(service: Service) -> None:
    """It decodes whatever comes as base64, which it asks for by default."""
    printed = await _run("openai_sdk.mjs", service)
    await _check_embeddings(printed, service)
    _check_equal(printed["short"], await _vectors(service, dimensions=8))
    assert printed["models"] == [["embed", "cross", "org/second"]]
    assert printed["retrieved"] == "org/second"
    found = printed["failures"]["model"]
    assert (found["class"], found["status"]) == ("NotFoundError", 404)
    assert (found["code"], found["param"]) == ("model_not_found", "model")
    assert printed["failures"]["dimensions"]["class"] == "BadRequestError"


async def test_openai_waits_as_long_as_it_is_told(cache_dir: Path) -> None:
    """While the server is full it gets 429, and repeats the call no sooner than it may."""
    backend = HashBackend()
    settings = settings_for(
        EMBED, cache_dir=cache_dir, http_address="127.0.0.1:0", max_queued_inputs=1
    )
    async with serving(settings, backend.open) as service:
        backend.hold()
        try:
            blocking = asyncio.ensure_future(service.client.embed("first"))
            await until(lambda: service.admission().inputs == 1)
            async with _started("openai_retries.py", url=_url(service), texts=["a text"]) as client:
                assert client.stdout is not None
                assert await client.stdout.readline() == b"refused\n"
                backend.release()
                await blocking
                *_, printed = (await client.stdout.read()).splitlines()
                assert await client.wait() == 0
        finally:
            backend.release()
    found = json.loads(printed)
    assert found["vectors"] == 1
    assert found["waits"]
    for wait in found["waits"]:
        assert wait["waited_ms"] >= wait["told_ms"] > 0


async def test_openai_waits_for_the_limit_of_its_caller(service: Service) -> None:
    """A caller beyond its limit gets 429, and repeats the call no sooner than it may."""
    clock = Clock()
    limits = RateLimits(requests_per_s=2, request_burst=1)
    service.server.open_calls.rates = Rates(limits, clock=clock)
    await service.client.embed("the only call of this half second")
    async with _started("openai_retries.py", url=_url(service), texts=["a text"]) as client:
        assert client.stdout is not None
        assert await client.stdout.readline() == b"refused\n"
        clock.now += 0.5
        *_, printed = (await client.stdout.read()).splitlines()
        assert await client.wait() == 0
    found = json.loads(printed)
    assert found["vectors"] == 1
    assert found["waits"]
    for wait in found["waits"]:
        assert wait["waited_ms"] >= wait["told_ms"] >= 500


async def test_cohere(service: Service) -> None:
    """It embeds in all number formats that the server has, and both of its versions rank."""
    printed = await _run("cohere_sdk.py", service)
    await _check_embeddings(printed, service)
    await _check_rankings(printed, service)
    expected = await _vectors(service)
    decoded = [np.frombuffer(base64.b64decode(one), "<f4") for one in printed["base64"]]
    assert np.array_equal(np.stack(decoded), expected)
    bits = np.packbits(expected > 0, axis=-1)
    assert printed["ubinary"] == bits.tolist()
    assert printed["binary"] == (bits.astype(int) - 128).tolist()
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert np.allclose(np.asarray(printed["int8"]) * largest / 127, expected, atol=0.01)
    (best, *_) = printed["rankings"].values()
    assert printed["best"] == best[:2]
    assert printed["documents"] == [DOCUMENTS[index] for index, _ in best]
    assert printed["failures"]["model"] == {"class": "NotFoundError", "status": 404}
    assert printed["failures"]["formats"] == {"class": "BadRequestError", "status": 400}


async def test_hugging_face(service: Service) -> None:
    """Its inference clients embed at a URL, alone and under LangChain."""
    printed = await _run("huggingface_sdk.py", service)
    await _check_embeddings(printed, service)
    _check_equal(printed["raw"], await _vectors(service, normalize=False))
    # Should it accept a URL one day, the program needs no other client in its place.
    assert "not a URL" in printed["refusal"]


async def test_langchain_openai(service: Service) -> None:
    """It embeds with one argument, which the error without it names."""
    printed = await _run("langchain_openai_sdk.py", service)
    await _check_embeddings(printed, service)
    assert "check_embedding_ctx_length=False" in printed["refusal"]


@pytest.mark.parametrize("program", ["llama_index_sdk.py", "haystack_sdk.py", "litellm_sdk.py"])
async def test_frameworks(program: str, service: Service, ranking: Service) -> None:
    """Their embedders and rankers get gRPC's values."""
    printed = await _run(program, service, ranking)
    await _check_embeddings(printed, service)
    await _check_rankings(printed, service)
    if "failures" in printed:
        assert printed["failures"]["model"] == {"class": "NotFoundError", "status": 404}


def _check_equal(found: Sequence[Sequence[float]], expected: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(np.asarray(found, np.float32), expected)
