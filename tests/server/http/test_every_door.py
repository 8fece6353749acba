"""Every door gives the numbers of gRPC, bit for bit, for every model that the repository has."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedgrpc.models.kinds import RerankMethod
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import embedding_service_pb2, rerank_service_pb2
from tests.server.http.http_client import HttpClient
from tests.server.kserve.requests import KServe, pairs_for, request_for, rows_of
from tests.server.service import FIXTURES, Service, serving, settings_for

# Its prompts choose a task, so that every request must name one.
LEFT_OUT = "task-by-prompt"
# All but the adapters, whose base model is a folder of its own.
FOLDERS = sorted(
    one.parent
    for one in FIXTURES.glob("*/tokenizer.json")
    if not (one.parent / "adapter_config.json").exists() and one.parent.name != LEFT_OUT
)
# One of each kind: dense, with other layers, static, sparse, all at once, and those that rank.
FEW = (
    "bert-cls",
    "colbert-bert",
    "cross-bert",
    "cross-qwen3-causal",
    "modernbert-mean",
    "qwen3-last",
    "splade-bert",
    "static-potion",
    "xlmr-bge-m3",
)
TEXTS = 3
LOAD_S = 300.0

Floats = NDArray[np.float32]


@asynccontextmanager
async def serving_folders(folders: Sequence[Path], cache_dir: Path) -> AsyncIterator[Service]:
    """Serve the models of folders, each under the name of its folder."""
    models = [ModelSettings(id=one.name, source=str(one)) for one in folders]
    settings = settings_for(*models, cache_dir=cache_dir, http_address="127.0.0.1:0", kserve=True)
    async with serving(settings) as one:
        # A server on a busy machine starts before the last of so many is built.
        async with asyncio.timeout(LOAD_S):
            while not all(served.loaded for served in one.server.catalog):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.05)
        yield one


def _rows(vectors: Any) -> Floats:
    return np.asarray(list(vectors), np.float32)


def _from_base64(values: list[str]) -> Floats:
    return np.stack([np.frombuffer(base64.b64decode(one), "<f4") for one in values])


# Where a vector stands in the answer to a body with these texts, for a named model.
Read = Callable[[Any], Floats]
DOORS: Mapping[str, tuple[str, Callable[[str, list[str]], Any], Read]] = {
    "openai float": (
        "/v1/embeddings",
        lambda model, texts: {"input": texts, "model": model},
        lambda answer: _rows(one["embedding"] for one in answer["data"]),
    ),
    "openai base64": (
        "/v1/embeddings",
        lambda model, texts: {"input": texts, "model": model, "encoding_format": "base64"},
        lambda answer: _from_base64([one["embedding"] for one in answer["data"]]),
    ),
    "cohere float": (
        "/v2/embed",
        lambda model, texts: {"texts": texts, "model": model},
        lambda answer: _rows(answer["embeddings"]["float"]),
    ),
    "cohere base64": (
        "/v2/embed",
        lambda model, texts: {"texts": texts, "model": model, "embedding_types": ["base64"]},
        lambda answer: _from_base64(answer["embeddings"]["base64"]),
    ),
    "tei": ("/embed", lambda _, texts: {"inputs": texts}, _rows),
    "embedding-inference-api": (
        "/embed",
        lambda model, texts: {"input": texts, "model": model},
        lambda answer: _rows(answer["embeddings"]),
    ),
    "bge-m3 on fastapi": (
        "/embeddings/",
        lambda _, texts: {"sentences": texts},
        lambda answer: _rows(answer["embeddings"]),
    ),
    "triton-grpc-proxy": (
        "/v1/embedding",
        lambda _, texts: [{"query": text} for text in texts],
        lambda answer: _rows(one["embedding"] for one in answer),
    ),
}
# The options that a door sets besides the server's defaults.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "tei": {"normalize": True},
}


def _reference(name: str) -> Mapping[str, Any]:
    answers: Mapping[str, Any] = json.loads((FIXTURES / name / "expected.json").read_text("utf-8"))
    return answers


def _texts(name: str) -> list[str]:
    reference = _reference(name)
    found = reference.get("texts") or [text for pair in reference.get("pairs", ()) for text in pair]
    return found[:TEXTS] or ["what is an embedding", "a", "tea, price"]


async def _by_grpc(service: Service, name: str, **options: Any) -> Floats:
    asked = embedding_service_pb2.EmbedOptions(**options)
    answer = await service.client.embed(*_texts(name), model=name, options=asked)
    return _rows(one.dense.values for one in answer.embeddings)


async def test_every_door_gives_the_numbers_of_grpc(cache_dir: Path) -> None:
    """Vectors, sparse weights and scores of a model of each kind, through every path."""
    folders = [one for one in FOLDERS if one.name in FEW]
    assert len(folders) == len(FEW)
    async with serving_folders(folders, cache_dir) as service:
        seen = await _check_doors(service)
    assert seen.keys() == {"dense", "sparse", "ranks"}


@pytest.mark.slow
async def test_every_door_gives_the_numbers_of_every_model(cache_dir: Path) -> None:
    """Those of all models of the repository."""
    async with serving_folders(FOLDERS, cache_dir) as service:
        seen = await _check_doors(service)
    assert seen["dense"] > 20
    assert seen["sparse"] > 3
    assert seen["ranks"] > 20


async def _check_doors(service: Service) -> Counter[str]:
    """Check all models; return how many have dense vectors, sparse weights and scores."""
    http = HttpClient(service)
    seen: Counter[str] = Counter()
    for served in _each_as_default(service):
        loaded = served.ready()
        if loaded.embedder is not None and loaded.properties.dimensions:
            seen["dense"] += 1
            await _check_vectors(service, http, served.id)
        if loaded.embedder is not None and loaded.properties.sparse_dimensions:
            seen["sparse"] += 1
            await _check_weights(service, http, served.id)
        if loaded.reranker is not None:
            seen["ranks"] += 1
            await _check_scores(service, http, served.id)
    return seen


def _each_as_default(service: Service) -> Iterator[ServedModel]:
    """Yield each model, which is meanwhile the one of requests that name none."""
    catalog = service.server.catalog
    for served in tuple(catalog):
        catalog._models = (served, *(one for one in catalog if one is not served))
        yield served


async def _check_vectors(service: Service, http: HttpClient, model: str) -> None:
    for door, (path, write, read) in DOORS.items():
        expected = await _by_grpc(service, model, **OPTIONS.get(door, {}))
        reply = await http.post(path, write(model, _texts(model)))
        assert reply.status == 200, (model, door, reply.json)
        assert np.array_equal(read(reply.json), expected), (model, door)
    texts = _texts(model)
    for raw in (True, False):
        response = await KServe(service).infer(request_for(*texts, raw=raw, model_name=model))
        assert np.array_equal(rows_of(response), await _by_grpc(service, model)), (model, raw)


async def _check_weights(service: Service, http: HttpClient, model: str) -> None:
    sparse = embedding_service_pb2.EmbedOptions(
        representations=[embedding_service_pb2.REPRESENTATION_SPARSE]
    )
    answer = await service.client.embed(*_texts(model), model=model, options=sparse)
    reply = await http.post("/embed_sparse", {"inputs": _texts(model)})
    assert reply.status == 200, (model, reply.json)
    for found, one in zip(reply.json, answer.embeddings, strict=True):
        assert [item["index"] for item in found] == list(one.sparse.indices), model
        assert _rows(item["value"] for item in found).tolist() == list(one.sparse.values), model


async def _check_scores(service: Service, http: HttpClient, model: str) -> None:
    query, *documents = [*_texts(model), "a last document"]
    expected = await _ranked(service, model, query, documents)
    body = {"query": query, "documents": documents, "model": model}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        reply = await http.post(path, body)
        assert reply.status == 200, (model, path, reply.json)
        assert _scores(reply.json["results"]) == expected, (model, path)
    reply = await http.post("/rerank", {"query": query, "texts": documents})
    assert reply.status == 200, (model, reply.json)
    # A sigmoid, whatever the model's own scale is; a similarity has none.
    loaded, reranker = service.server.catalog.find(model).reranker()
    if reranker.method is RerankMethod.CROSS_ENCODER:
        sigmoid = rerank_service_pb2.SCORE_SCALE_SIGMOID
        expected = await _ranked(service, model, query, documents, score_scale=sigmoid)
    assert _scores(reply.json) == expected, model
    if not loaded.properties.dimensions:
        # The protocol has one signature for a model, and vectors go first.
        pairs = pairs_for(query, documents, model_name=model)
        by_pair = rows_of(await KServe(service).infer(pairs))[:, 0].tolist()
        expected = await _ranked(service, model, query, documents)
        assert sorted(enumerate(by_pair)) == sorted(expected), model


async def _ranked(
    service: Service, model: str, query: str, documents: list[str], **options: Any
) -> list[tuple[int, float]]:
    ranked = await service.client.rerank.Rerank(
        rerank_service_pb2.RerankRequest(
            model=model,
            query=query,
            documents=documents,
            options=rerank_service_pb2.RerankOptions(**options),
        )
    )
    return [(one.index, one.score) for one in ranked.results]


def _scores(results: Any) -> list[tuple[int, float]]:
    return [(one["index"], float(np.float32(one["score"]))) for one in results]
