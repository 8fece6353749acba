"""Cohere's embeddings over HTTP."""

import base64
from typing import Any

import numpy as np
import pytest

from embedgrpc.v1 import embedding_service_pb2
from tests.server.http.http_client import HttpClient
from tests.server.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["a first text", "another one, which is longer"]
TYPES = ["float", "int8", "ubinary", "binary", "base64"]


async def test_number_formats_are_those_of_grpc(service: Service, http: HttpClient) -> None:
    """One request returns the vectors in each format that it asks for, equal bit for bit."""
    reply = await http.post(
        "/v2/embed",
        {"model": "embed", "texts": TEXTS, "input_type": "search_query", "embedding_types": TYPES},
    )
    assert reply.status == 200
    found = reply.json["embeddings"]
    assert list(found) == TYPES

    options = embedding_service_pb2.EmbedOptions(input_type="INPUT_TYPE_QUERY")
    answer = await service.client.embed(*TEXTS, options=options)
    vectors = np.asarray([list(one.dense.values) for one in answer.embeddings], np.float32)
    assert np.array_equal(np.asarray(found["float"], np.float32), vectors)
    decoded = [np.frombuffer(base64.b64decode(one), "<f4") for one in found["base64"]]
    assert np.array_equal(decoded, vectors)

    options.encoding = embedding_service_pb2.VECTOR_ENCODING_INT8
    answer = await service.client.embed(*TEXTS, options=options)
    packed = [np.frombuffer(one.dense.data, np.int8) for one in answer.embeddings]
    assert np.array_equal(found["int8"], packed)
    scales = [one.dense.scale for one in answer.embeddings]
    assert np.array_equal(np.asarray(reply.json["int8_scales"], np.float32), scales)

    bits = np.packbits(vectors > 0, axis=1)
    assert np.array_equal(found["ubinary"], bits)
    assert np.array_equal(found["binary"], bits.astype(int) - 128)


async def test_the_answer(http: HttpClient) -> None:
    """Without embedding_types it has float; inputs may be parts of type text."""
    inputs = [{"content": [{"type": "text", "text": one}]} for one in TEXTS]
    plain = await http.post("/v2/embed", {"texts": TEXTS, "input_type": "clustering"})
    parts = await http.post(
        "/v2/embed", {"inputs": inputs, "input_type": "clustering", "images": None}
    )
    for reply in (plain, parts):
        body: dict[str, Any] = reply.json
        assert body["response_type"] == "embeddings_by_type"
        assert body["model"] == "embed"
        assert list(body["embeddings"]) == ["float"]
        assert body["meta"]["api_version"] == {"version": "2"}
        assert body["meta"]["billed_units"]["input_tokens"] > len(TEXTS)
    assert plain.json["embeddings"] == parts.json["embeddings"]
    assert plain.json["id"] != parts.json["id"]


async def test_output_dimension(http: HttpClient) -> None:
    """Vectors are cut to it and scaled to unit length again."""
    reply = await http.post("/v2/embed", {"texts": TEXTS, "output_dimension": 3})
    vectors = np.asarray(reply.json["embeddings"]["float"])
    assert vectors.shape == (2, 3)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


async def test_truncation(http: HttpClient) -> None:
    """END and START cut; NONE refuses."""
    ends = {}
    for word in ("END", "START"):
        body = {"texts": ["first " + "word " * 500 + "last"], "truncate": word}
        reply = await http.post("/v2/embed", body)
        assert reply.status == 200
        ends[word] = reply.json["embeddings"]["float"]
    assert ends["END"] != ends["START"]
    refused = await http.post("/v2/embed", {"texts": ["word " * 500], "truncate": "NONE"})
    assert refused.json["error"]["code"] == "input_too_long"
    assert refused.json["error"]["param"] == "texts[0]"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "texts"),
        ({"texts": TEXTS, "inputs": []}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": ["a", ""]}, "texts[1]"),
        ({"inputs": [{"content": []}]}, "inputs[0].content"),
        ({"inputs": [{"content": [{"type": "image_url"}]}]}, "inputs[0].content"),
        ({"images": ["data:image/png;base64,AA"]}, "images"),
        ({"texts": TEXTS, "embedding_types": ["uint8"]}, "embedding_types"),
        ({"texts": TEXTS, "embedding_types": ["float64"]}, "embedding_types"),
        ({"texts": TEXTS, "input_type": "image"}, "input_type"),
        ({"texts": TEXTS, "output_dimension": 100_000}, "output_dimension"),
        ({"texts": TEXTS, "output_dimension": -1}, "output_dimension"),
        ({"texts": TEXTS, "truncate": "MIDDLE"}, "truncate"),
        ({"texts": TEXTS, "max_tokens": -1}, "max_tokens"),
    ],
)
async def test_bad_requests(http: HttpClient, body: dict[str, object], param: str) -> None:
    """What cannot be followed is refused by its name in the dialect."""
    reply = await http.post("/v2/embed", body)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)
    assert "options" not in reply.json["error"]["message"]
