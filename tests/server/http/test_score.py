"""Scores of pairs for vLLM's clients: the values of gRPC, in order."""

import numpy as np
import pytest

from embedgrpc.v1 import rerank_service_pb2
from tests.server.http.http_client import HttpClient
from tests.server.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["a first text", "another one, which is longer", "third"]
KEYS = [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")]


async def _expected(service: Service, query: str) -> list[object]:
    """Return the scores of all texts for a query."""
    request = rerank_service_pb2.RerankRequest(query=query, documents=TEXTS, model="cross")
    results = (await service.client.rerank.Rerank(request)).results
    by_index = {one.index: one.score for one in results}
    return [pytest.approx(by_index[index], rel=1e-7) for index in range(len(TEXTS))]


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_scores_are_those_of_grpc(
    service: Service, http: HttpClient, path: str, keys: tuple[str, str]
) -> None:
    """One text is compared with each of the others; two lists are paired."""
    reply = await http.post(path, {"model": "cross", keys[0]: TEXTS[0], keys[1]: TEXTS})
    body = reply.json
    assert (reply.status, body["object"], body["model"]) == (200, "list", "cross")
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
    assert [one["index"] for one in body["data"]] == [0, 1, 2]
    assert [one["score"] for one in body["data"]] == await _expected(service, TEXTS[0])
    paired = await http.post(path, {"model": "cross", keys[0]: TEXTS, keys[1]: TEXTS[::-1]})
    for index, query in enumerate(TEXTS):
        score = paired.json["data"][index]["score"]
        assert score == (await _expected(service, query))[2 - index]


async def test_scores_that_are_not_activated(http: HttpClient) -> None:
    """`use_activation` false gives logits."""
    body = {"model": "cross", "text_1": TEXTS[0], "text_2": TEXTS[1]}
    plain = (await http.post("/score", body)).json["data"][0]["score"]
    raw = (await http.post("/score", body | {"use_activation": False})).json["data"][0]["score"]
    assert plain == pytest.approx(1 / (1 + np.exp(-raw)), rel=1e-5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text_1"),
        ({"text_1": "a"}, "text_2"),
        ({"text_1": "a", "text_2": "b", "queries": "c", "documents": "d"}, "text_1"),
        ({"text_1": "a", "text_2": []}, "text_2"),
        ({"text_1": [], "text_2": []}, "text_2"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ({"text_1": "a", "text_2": ["b", ""]}, "text_2[1]"),
        ({"text_1": " ", "text_2": ["b"]}, "text_1"),
        ({"queries": ["a", ""], "documents": ["b", "c"]}, "queries[1]"),
        ({"text_1": "a", "text_2": ["b"] * 1025}, "text_2"),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"text_1": "a", "text_2": "b", "truncate": "middle"}, "truncate"),
    ],
)
async def test_wrong_pairs(http: HttpClient, body: dict[str, object], param: str) -> None:
    """Errors have OpenAI's form and name the key."""
    reply = await http.post("/score", {"model": "cross"} | body)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)
