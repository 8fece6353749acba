"""Rankings over HTTP: the scores are those of gRPC, in the form of each dialect."""

from typing import Any

import pytest

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import rerank_service_pb2
from tests.server.conftest import Serve
from tests.server.http.http_client import HttpClient
from tests.server.service import CROSS, FIXTURES, Service

in_module = pytest.mark.asyncio(loop_scope="module")

QUERY = "a question"
DOCUMENTS = ["one answer", "a second, which is longer", "third"]


async def _expected(
    service: Service, model: str = "cross", **options: object
) -> list[tuple[int, Any]]:
    answer = await service.client.rerank.Rerank(
        rerank_service_pb2.RerankRequest(
            query=QUERY,
            documents=DOCUMENTS,
            model=model,
            options=rerank_service_pb2.RerankOptions(**options),  # type: ignore[arg-type]
        )
    )
    return [(one.index, pytest.approx(one.score, rel=1e-7)) for one in answer.results]


@in_module
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_are_ranked_for_cohere_and_jina(
    service: Service, http: HttpClient, path: str
) -> None:
    """Documents may be strings or objects; each client finds its own keys."""
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]
    reply = await http.post(
        path, {"query": QUERY, "documents": documents, "model": "cross", "top_n": 2}
    )
    assert reply.status == 200
    results = reply.json["results"]
    expected = (await _expected(service))[:2]
    assert [(one["index"], one["relevance_score"]) for one in results] == expected
    assert [(one["index"], one["score"]) for one in results] == expected
    for one in results:
        assert one["text"] == one["document"]["text"] == DOCUMENTS[one["index"]]
    assert reply.json["model"] == "cross"
    assert reply.json["usage"]["total_tokens"] > 0
    assert reply.json["meta"]["billed_units"] == {"search_units": 1}


@in_module
async def test_documents_can_be_left_out(http: HttpClient) -> None:
    """`return_documents` false leaves only index and scores."""
    body = {"query": QUERY, "documents": DOCUMENTS, "model": "cross", "return_documents": False}
    reply = await http.post("/rerank", body)
    assert all(set(one) == {"index", "relevance_score", "score"} for one in reply.json["results"])


@in_module
async def test_billed_units(http: HttpClient) -> None:
    """Cohere's unit is a query with up to a hundred documents."""
    body = {"query": QUERY, "documents": ["a"] * 101, "model": "cross", "top_n": 1}
    meta = (await http.post("/v2/rerank", body)).json["meta"]
    assert meta["billed_units"] == {"search_units": 2}


@in_module
@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"query": QUERY, "documents": []}, 400, "documents"),
        ({"query": QUERY, "documents": [{}]}, 400, "documents[0]"),
        ({"query": "", "documents": ["a"]}, 400, "query"),
        ({"query": QUERY, "documents": ["a", ""]}, 400, "documents[1]"),
        ({"query": QUERY, "documents": ["a"], "top_n": -1}, 400, "top_n"),
        ({"query": QUERY, "documents": ["a"], "rank_fields": ["title"]}, 400, "rank_fields"),
        (
            {"query": QUERY, "documents": ["a"], "max_chunks_per_doc": 10},
            400,
            "max_chunks_per_doc",
        ),
        (
            {"query": QUERY, "documents": ["a"], "truncate_prompt_tokens": 9},
            400,
            "truncate_prompt_tokens",
        ),
        ({"query": QUERY, "documents": ["a"], "model": "none"}, 404, "model"),
        ({"query": QUERY}, 400, "documents"),
    ],
)
async def test_bad_requests(
    http: HttpClient, body: dict[str, object], status: int, param: str
) -> None:
    """Errors have OpenAI's form and the names of the dialect."""
    reply = await http.post("/v1/rerank", {"model": "cross"} | body)
    assert (reply.status, reply.json["error"]["param"]) == (status, param)


async def test_texts_are_ranked_for_tei(serve: Serve) -> None:
    """text-embeddings-inference answers with a bare list, by the default model."""
    service = await serve(CROSS, http_address="127.0.0.1:0")
    http = HttpClient(service)
    body = {"query": QUERY, "texts": DOCUMENTS}
    plain = await http.post("/rerank", body)
    expected = await _expected(service)
    assert [(one["index"], one["score"]) for one in plain.json] == expected
    raw = await http.post("/rerank", body | {"raw_scores": True, "return_text": True})
    raw_scale = rerank_service_pb2.SCORE_SCALE_RAW
    assert [(one["index"], one["score"]) for one in raw.json] == await _expected(
        service, score_scale=raw_scale
    )
    assert raw.json[0]["text"] == DOCUMENTS[raw.json[0]["index"]]
    empty = await http.post("/rerank", {"query": QUERY, "texts": []})
    assert (empty.status, empty.json["error_type"]) == (400, "Empty")
    info = (await http.get("/info")).json
    assert info["model_id"] == "cross"
    assert "reranker" in info["model_type"]


async def test_pairs_are_scored_with_all_representations(serve: Serve) -> None:
    """The scores of BGE-M3 are its hybrid ones, in the order of the pairs."""
    m3 = ModelSettings(id="m3", source=str(FIXTURES / "xlmr-bge-m3"))
    service = await serve(m3, http_address="127.0.0.1:0")
    pairs = [[QUERY, DOCUMENTS[2]], ["other", DOCUMENTS[0]], [QUERY, DOCUMENTS[0]]]
    reply = await HttpClient(service).post("/rerank/", {"sentence_pairs": pairs})
    by_index = dict(await _expected(service, "m3"))
    scores = reply.json["scores"]
    assert (scores[0], scores[2]) == (by_index[2], by_index[0])
    assert len(scores) == 3
    pairs[1][1] = ""
    refused = await HttpClient(service).post("/rerank/", {"sentence_pairs": pairs})
    assert refused.status == 400
    assert refused.json["detail"].startswith("sentence_pairs[1]")
    many = await HttpClient(service).post("/rerank/", {"sentence_pairs": pairs * 1000})
    assert "3000 entries" in many.json["detail"]


async def test_sparse_vectors_for_tei(serve: Serve) -> None:
    """They are lists of index and value."""
    splade = ModelSettings(id="splade", source=str(FIXTURES / "splade-bert"))
    service = await serve(splade, http_address="127.0.0.1:0")
    answer = await service.client.embed(*DOCUMENTS)
    reply = await HttpClient(service).post("/embed_sparse", {"inputs": DOCUMENTS})
    for found, one in zip(reply.json, answer.embeddings, strict=True):
        assert [item["index"] for item in found] == list(one.sparse.indices)
        assert [item["value"] for item in found] == pytest.approx(list(one.sparse.values))
