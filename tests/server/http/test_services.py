"""Clients of small services change one URL and go on."""

import time

import numpy as np
import pytest

from embedgrpc.libraries.arrays import FloatArray, IntArray
from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend, vector_of
from tests.server.http.http_client import HttpClient
from tests.server.service import Service

in_module = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["a first text", "second"]


@in_module
@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        ("/v1/embedding", [{"query": one} for one in TEXTS],
         lambda reply: [one["embedding"] for one in reply]),
        ("/embeddings/", {"sentences": TEXTS}, lambda reply: reply["embeddings"]),
        ("/embed", {"input": TEXTS, "model": "embed"}, lambda reply: reply["embeddings"]),
        ("/embed", {"inputs": TEXTS}, lambda reply: reply),
    ],
)  # fmt: skip
async def test_vectors_are_those_of_grpc(
    service: Service, http: HttpClient, path: str, body: object, read: object
) -> None:
    """Each service has its own path, keys and answer."""
    answer = await service.client.embed(*TEXTS)
    reply = await http.post(path, body, authorization="Bearer anything")
    assert reply.status == 200
    expected = np.asarray([list(one.dense.values) for one in answer.embeddings], np.float32)
    assert np.array_equal(np.asarray(read(reply.json), np.float32), expected)  # type: ignore[operator]


@in_module
async def test_a_path_of_two_dialects_needs_the_key_of_one(http: HttpClient) -> None:
    """The error names the keys."""
    reply = await http.post("/embed", {"text": "a"})
    assert reply.status == 422
    assert "inputs or input" in reply.json["error"]


@in_module
async def test_models_and_status(http: HttpClient) -> None:
    """The lists say what each model can do."""
    models = (await http.get("/models")).json
    assert models["embedding_models"] == ["embed", "org/second"]
    assert models["reranking_models"] == ["embed", "cross", "org/second"]
    for path in ("/", "/health/status"):
        assert (await http.get(path)).json["status"] == "ok"


async def test_a_time_limit(serve: Serve, backend: HashBackend) -> None:
    """A call that takes too long is a 504 with the time that it took."""
    service = await serve(backend=backend, http_address="127.0.0.1:0")
    backend.hold()
    reply = await HttpClient(service).post(
        "/embeddings/", {"sentences": TEXTS}, x_request_timeout="0.1"
    )
    assert reply.status == 504
    assert reply.json["processing_time"] >= 0.1


async def test_the_queries_of_a_call_share_its_deadline(serve: Serve, backend: HashBackend) -> None:
    """Sixteen run at once; those that come later get no time of their own."""

    def slow(ids: IntArray) -> FloatArray:
        time.sleep(0.01)
        return vector_of(ids)

    service = await serve(backend=backend, http_address="127.0.0.1:0")
    backend.answer = slow
    pairs = [(f"query {number}", f"document {number}") for number in range(64)]
    reply = await HttpClient(service).post(
        "/rerank/", {"sentence_pairs": pairs}, x_request_timeout="0.7"
    )
    # Those that cannot be in time are refused at once.
    assert reply.status in {429, 504}
    assert "deadline" in reply.json["detail"]
    assert backend.sequences < 2 * len(pairs)
