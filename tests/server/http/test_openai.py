import base64

import numpy as np
import pytest

from tests.server.http.http_client import HttpClient
from tests.server.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["a first text", "another one, which is longer", "third"]


async def test_vectors_are_those_of_grpc(service: Service, http: HttpClient) -> None:
    """They are equal bit for bit."""
    answer = await service.client.embed(*TEXTS)
    expected = [list(one.dense.values) for one in answer.embeddings]

    floats = await http.post("/v1/embeddings", {"input": TEXTS, "encoding_format": "float"})
    in_base64 = await http.post("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"})

    for reply in (floats, in_base64):
        assert reply.status == 200
        assert reply.json["object"] == "list"
        assert reply.json["model"] == "embed"
        assert reply.json["fingerprint"] == answer.fingerprint
        tokens = answer.usage.input_tokens
        assert reply.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert [one["index"] for one in reply.json["data"]] == [0, 1, 2]
    assert np.array_equal(
        np.asarray([one["embedding"] for one in floats.json["data"]], np.float32),
        np.asarray(expected, np.float32),
    )
    for one, vector in zip(in_base64.json["data"], expected, strict=True):
        decoded = np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
        assert np.array_equal(decoded, np.asarray(vector, np.float32))


async def test_one_text_needs_no_list(http: HttpClient) -> None:
    """A string is a list of one; null and a slash at the end change nothing."""
    reply = await http.post("/v1/embeddings/", {"input": TEXTS[0], "model": None, "user": "me"})
    assert [one["object"] for one in reply.json["data"]] == ["embedding"]


@pytest.mark.parametrize(
    ("encoding", "dtype"), [("float16", "<f2"), ("int8", "int8"), ("ubinary", "uint8")]
)
async def test_number_formats(http: HttpClient, encoding: str, dtype: str) -> None:
    """Each encoding holds the numbers of its kind."""
    plain = await http.post("/v1/embeddings", {"input": TEXTS})
    short = await http.post(
        "/v1/embeddings", {"input": TEXTS, "encoding": encoding, "encoding_format": "base64"}
    )
    for one, vector in zip(short.json["data"], plain.json["data"], strict=True):
        numbers = np.frombuffer(base64.b64decode(one["embedding"]), dtype)
        expected = np.asarray(vector["embedding"])
        if encoding == "ubinary":
            assert np.array_equal(numbers, np.packbits(expected > 0))
        else:
            assert np.allclose(numbers * one.get("scale", 1), expected, atol=0.01)


async def test_options(http: HttpClient) -> None:
    """Dimensions and truncation are followed."""
    reply = await http.post("/v1/embeddings", {"input": TEXTS, "dimensions": 3})
    vectors = np.asarray([one["embedding"] for one in reply.json["data"]])
    assert vectors.shape == (3, 3)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    long = {"input": "word " * 500}
    assert (await http.post("/v1/embeddings", {**long, "truncate": True})).status == 200
    refused = await http.post("/v1/embeddings", {**long, "truncate": False})
    assert (refused.status, refused.json["error"]["code"]) == (400, "input_too_long")
    assert refused.json["error"]["param"] == "input[0]"


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"input": []}, 400, "input", "invalid_request"),
        ({"input": ["a", ""]}, 400, "input[1]", "empty_input"),
        ({"input": [[1, 2]]}, 400, "input", "invalid_request"),
        ({"input": [1, 2]}, 400, "input", "invalid_request"),
        ({"input": {"a": 1}}, 400, "input", "invalid_request"),
        ({}, 400, "input", "invalid_request"),
        ({"input": "a", "dimensions": 100_000}, 400, "dimensions", "invalid_request"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions", "invalid_request"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "invalid_request"),
        ({"input": "a", "prompt_name": "none"}, 400, "prompt_name", "unsupported"),
        ({"input": "a", "input_type": "poem"}, 400, "input_type", "invalid_request"),
        ({"input": "a", "model": "other"}, 404, "model", "model_not_found"),
        ({"input": "a", "model": "cross"}, 400, "model", "unsupported"),
    ],
)
async def test_errors(
    http: HttpClient, body: object, status: int, param: str | None, code: str
) -> None:
    """Errors have the form, the status and the names of the dialect."""
    reply = await http.post("/v1/embeddings", body)
    error = reply.json["error"]
    assert (reply.status, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert "options" not in error["message"]
    assert "texts" not in error["message"]


async def test_models(http: HttpClient) -> None:
    """Models are listed and found, also under names with a slash."""
    listed = (await http.get("/v1/models")).json
    assert [one["id"] for one in listed["data"]] == ["embed", "cross", "org/second"]
    for name in ("org/second", "org%2Fsecond"):
        one = await http.get(f"/v1/models/{name}")
        assert one.json == listed["data"][2]
    assert (await http.get("/v1/models/none")).status == 404
