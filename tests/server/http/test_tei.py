import numpy as np
import pytest

from tests.server.http.http_client import HttpClient
from tests.server.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_vectors_are_those_of_grpc(service: Service, http: HttpClient) -> None:
    """They are equal bit for bit."""
    texts = ["a first text", "second"]
    answer = await service.client.embed(*texts)
    reply = await http.post("/embed", {"inputs": texts})
    assert reply.status == 200
    expected = np.asarray([list(one.dense.values) for one in answer.embeddings], np.float32)
    assert np.array_equal(np.asarray(reply.json, np.float32), expected)


async def test_a_vector_that_is_not_normalised(http: HttpClient) -> None:
    """`normalize` false gives the vector before it is scaled."""
    plain = np.asarray((await http.post("/embed", {"inputs": "text"})).json[0])
    raw = np.asarray((await http.post("/embed", {"inputs": "text", "normalize": False})).json[0])
    assert np.allclose(raw / np.linalg.norm(raw), plain, atol=1e-6)
    assert not np.allclose(raw, plain)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": ["a", " "]}, 400, "Empty"),
        ({"inputs": ["a"] * 1025}, 422, "Validation"),
        ({"inputs": "a", "truncation_direction": "middle"}, 422, "Validation"),
        ({"inputs": "a", "prompt_name": "none"}, 422, "Validation"),
        ({"inputs": "a", "dimensions": 100_000}, 422, "Validation"),
        ({"inputs": [1]}, 422, "Validation"),
        ({"text": "a"}, 422, "Validation"),
        ({"inputs": "word " * 500, "truncate": False}, 422, "Validation"),
    ],
)
async def test_errors(http: HttpClient, body: object, status: int, kind: str) -> None:
    """Errors have the form, the status and the names of the dialect."""
    reply = await http.post("/embed", body)
    assert (reply.status, reply.json["error_type"]) == (status, kind)
    assert isinstance(reply.json["error"], str)
