"""Token ids in place of texts, in OpenAI's requests."""

from typing import Any

import pytest

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import tokenizer_service_pb2
from tests.server.conftest import Serve
from tests.server.http.http_client import HttpClient
from tests.server.service import EMBED, FIXTURES, Service

TEXTS = ["a first text", "Another one, which is longer: 42 words?", "third"]
LONG = "word " * 500
# WordPiece, byte-level BPE with left padding, SentencePiece, a static table, and others.
FAMILIES = ("bert-mean", "modernbert-mean", "qwen3-last", "xlmr-bge-m3", "static-potion")
BATCH = {"encoding_format": "base64"}
TAKEN: dict[str, Any] = {"openai_token_ids": "model"}


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


@pytest.mark.parametrize("family", FAMILIES)
async def test_ids_give_the_vectors_of_their_texts(serve: Serve, family: str) -> None:
    """They are equal bit for bit, cut to the limit or not, and so is the usage."""
    model = ModelSettings(id=family, source=str(FIXTURES / family))
    service = await serve(model, http_address="127.0.0.1:0", **TAKEN)
    http = HttpClient(service)
    texts = [*TEXTS, LONG]
    ids = await _ids_of(service, *texts)
    assert len(ids[3]) > service.server.catalog.default.ready().properties.max_tokens / 2
    assert await _embed(http, input=ids) == await _embed(http, input=texts)
    # One list of ids is one input.
    assert await _embed(http, input=ids[1]) == await _embed(http, input=texts[1])
    for end in ("start", "end"):
        cut = {"truncate": end, "truncate_prompt_tokens": 8, "dimensions": 4}
        assert await _embed(http, input=ids, **cut) == await _embed(http, input=texts, **cut)


async def test_ids_that_are_too_many_are_refused_as_texts_are(serve: Serve) -> None:
    """The error is the one of the text."""
    service = await serve(http_address="127.0.0.1:0", **TAKEN)
    http = HttpClient(service)
    ids = await _ids_of(service, LONG)
    refusals = [
        (await http.post("/v1/embeddings", {"input": one, "truncate": "none"})).json
        for one in (LONG, ids)
    ]
    assert refusals[0] == refusals[1]
    assert refusals[0]["error"]["code"] == "input_too_long"


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
async def test_bad_ids(serve: Serve, body: object, param: str, code: str) -> None:
    """Each error names the place; the vocabulary ends with the tokenizer's."""
    service = await serve(http_address="127.0.0.1:0", **TAKEN)
    reply = await HttpClient(service).post("/v1/embeddings", body)
    error = reply.json["error"]
    assert (reply.status, error["param"], error["code"]) == (400, param, code)


async def test_a_prompt_cannot_go_in_front_of_ids(serve: Serve) -> None:
    """The tokenizer may join the end of the prompt with the start of the text."""
    model = ModelSettings(id="prompted", source=EMBED.source, prompts={"query": "query: "})
    service = await serve(model, http_address="127.0.0.1:0", **TAKEN)
    body = {"input": [5], "prompt_name": "query"}
    reply = await HttpClient(service).post("/v1/embeddings", body)
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


async def test_ids_are_refused_by_default(http: HttpClient) -> None:
    """The message says what to set in the client that sends them."""
    for ids in ([1, 2], [[1, 2]], [1] * 100_000):
        reply = await http.post("/v1/embeddings", {"input": ids})
        assert reply.status == 400
        assert "check_embedding_ctx_length=False" in reply.json["error"]["message"]
