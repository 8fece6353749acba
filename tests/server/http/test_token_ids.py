"""Token ids in place of texts, in OpenAI's requests."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import tokenizer_service_pb2
from tests.server.conftest import Serve
from tests.server.http.conftest import sharing
from tests.server.http.http_client import HttpClient
from tests.server.service import EMBED, FIXTURES, Service

TEXTS = ["a first text", "Another one, which is longer: 42 words?", "third"]
LONG = "word " * 500
# WordPiece, byte-level BPE with left padding, SentencePiece, a static table, and others.
FAMILIES = ("bert-mean", "modernbert-mean", "qwen3-last", "xlmr-bge-m3", "static-potion")
BATCH = {"encoding_format": "base64"}
TAKEN: dict[str, Any] = {"openai_token_ids": "model"}

in_module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(cache_dir: Path) -> AsyncIterator[Service]:
    """A server that takes ids, of which `service` and `http` are; its default is `EMBED`."""
    models = [ModelSettings(id=one, source=str(FIXTURES / one)) for one in FAMILIES]
    prompted = ModelSettings(id="prompted", source=EMBED.source, prompts={"query": "query: "})
    async with sharing(EMBED, *models, prompted, cache_dir=cache_dir, **TAKEN) as service:
        yield service


async def _ids_of(service: Service, *texts: str, model: str = "") -> list[list[int]]:
    options = tokenizer_service_pb2.TokenizeOptions(omit_special_tokens=True)
    answer = await service.client.tokenizer.Tokenize(
        tokenizer_service_pb2.TokenizeRequest(texts=texts, model=model, options=options)
    )
    return [list(one.ids) for one in answer.texts]


async def _embed(http: HttpClient, **body: object) -> Any:
    reply = await http.post("/v1/embeddings", BATCH | body)
    assert reply.status == 200, reply.body
    return reply.json


@in_module
@pytest.mark.parametrize("family", FAMILIES)
async def test_ids_give_the_vectors_of_their_texts(
    service: Service, http: HttpClient, family: str
) -> None:
    """They are equal bit for bit, cut to the limit or not, and so is the usage."""
    texts = [*TEXTS, LONG]
    ids = await _ids_of(service, *texts, model=family)
    properties = service.server.catalog.find(family).ready().properties
    assert len(ids[3]) > properties.max_tokens / 2

    async def embed(given: Any, **options: object) -> Any:
        return await _embed(http, input=given, model=family, **options)

    assert await embed(ids) == await embed(texts)
    # One list of ids is one input.
    assert await embed(ids[1]) == await embed(texts[1])
    for end in ("start", "end"):
        cut = {"truncate": end, "truncate_prompt_tokens": 8, "dimensions": 4}
        assert await embed(ids, **cut) == await embed(texts, **cut)


@in_module
async def test_ids_that_are_too_many_are_refused_as_texts_are(
    service: Service, http: HttpClient
) -> None:
    """The error is the one of the text."""
    ids = await _ids_of(service, LONG)
    refusals = [
        (await http.post("/v1/embeddings", {"input": one, "truncate": "none"})).json
        for one in (LONG, ids)
    ]
    assert refusals[0] == refusals[1]
    assert refusals[0]["error"]["code"] == "input_too_long"


@in_module
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": [[5], []]}, "input[1]", "empty_input"),
        ({"input": [[5], [7, 10_000_000]]}, "input[1][1]", "invalid_request"),
        ({"input": [5, -1]}, "input[0][1]", "invalid_request"),
        ({"input": [5, 2**70]}, "input[0]", "invalid_request"),
        ({"input": [5, "a"]}, "input", "invalid_request"),
        ({"input": [[5], 5]}, "input", "invalid_request"),
        ({"input": [["a"]]}, "input[0][0]", "invalid_request"),
        ({"input": [5, 1.5]}, "input[1]", "invalid_request"),
        ({"input": []}, "input", "invalid_request"),
        ({"input": [[5]] * 1025}, "input", "invalid_request"),
    ],
)
async def test_bad_ids(http: HttpClient, body: object, param: str, code: str) -> None:
    """Each error names the place; the vocabulary ends with the tokenizer's."""
    reply = await http.post("/v1/embeddings", body)
    error = reply.json["error"]
    assert (reply.status, error["param"], error["code"]) == (400, param, code)


@in_module
async def test_a_prompt_cannot_go_in_front_of_ids(http: HttpClient) -> None:
    """The tokenizer may join the end of the prompt with the start of the text."""
    body = {"input": [5], "prompt_name": "query", "model": "prompted"}
    reply = await http.post("/v1/embeddings", body)
    assert (reply.status, reply.json["error"]["code"]) == (400, "unsupported")
    assert "the prompt of 7 characters" in reply.json["error"]["message"]


async def test_special_tokens_that_a_text_cannot_have(serve: Serve) -> None:
    """Where their names in texts are plain characters, their ids are unknown."""
    for escape, status in ((False, 200), (True, 400)):
        model = ModelSettings(id="one", source=EMBED.source, escape_special_tokens=escape)
        service = await serve(model, http_address="127.0.0.1:0", **TAKEN)
        (found,) = (
            await service.client.tokenizer.Tokenize(
                tokenizer_service_pb2.TokenizeRequest(texts=["a"])
            )
        ).texts
        reply = await HttpClient(service).post("/v1/embeddings", {"input": [found.ids[0]]})
        assert reply.status == status


async def test_ids_are_refused_by_default(own_service: Service) -> None:
    """The message says what to set in the client that sends them."""
    http = HttpClient(own_service)
    for ids in ([1, 2], [[1, 2]], [1] * 100_000):
        reply = await http.post("/v1/embeddings", {"input": ids})
        assert reply.status == 400
        assert "check_embedding_ctx_length=False" in reply.json["error"]["message"]
