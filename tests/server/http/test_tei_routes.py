"""The further routes of text-embeddings-inference: values of gRPC, and its forms and statuses."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import common_pb2, embedding_service_pb2, tokenizer_service_pb2
from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.http.conftest import sharing
from tests.server.http.http_client import HttpClient, Reply
from tests.server.service import CROSS, EMBED, FIXTURES, Service

LABELS = ModelSettings(id="labels", source=str(FIXTURES / "classify-nli"))
TEXTS = ["a first text", "another one, which is longer", "third"]
PAIRS = [[TEXTS[0], TEXTS[1]], [TEXTS[2], TEXTS[0]]]
TIMES = ("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time")


in_module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with a classifier, embedding models and a cross-encoder, by way of `service`."""
    prompted = ModelSettings(id="prompted", source=EMBED.source, prompts={"query": "café: "})
    models = (LABELS, EMBED, CROSS, prompted)
    async with sharing(*models, cache_dir=cache_dir) as one:
        yield one


def _error(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.json["error_type"]


async def _labels(
    service: Service, *, raw: bool, texts: Any = (), pairs: Any = ()
) -> list[list[dict[str, Any]]]:
    function = classify.SCORE_FUNCTION_RAW if raw else classify.SCORE_FUNCTION_SOFTMAX
    answer = await service.client.classify.Classify(
        classify.ClassifyRequest(
            texts=texts,
            pairs=[classify.TextPair(first=first, second=second) for first, second in pairs],
            options=classify.ClassifyOptions(score_function=function),
        )
    )
    return [
        [{"score": pytest.approx(one.score, rel=1e-7), "label": one.label} for one in each.labels]
        for each in answer.classifications
    ]


@in_module
@pytest.mark.parametrize("raw", [False, True])
async def test_labels_are_those_of_grpc(service: Service, http: HttpClient, *, raw: bool) -> None:
    """One input has a list of labels, the best first, and several have a list of lists."""
    texts = await _labels(service, raw=raw, texts=TEXTS)
    pairs = await _labels(service, raw=raw, pairs=PAIRS)
    for inputs, expected in (
        (TEXTS[0], texts[0]),
        ([TEXTS[0]], texts[0]),
        (PAIRS[0], pairs[0]),
        ([[one] for one in TEXTS], texts),
        (PAIRS, pairs),
        # Texts and pairs beside each other.
        ([[TEXTS[0]], PAIRS[0], [TEXTS[1]], PAIRS[1]], [texts[0], pairs[0], texts[1], pairs[1]]),
    ):
        for path in ("/predict", "/"):
            reply = await http.post(path, {"inputs": inputs, "raw_scores": raw})
            assert (reply.status, reply.json) == (200, expected)


@in_module
@pytest.mark.parametrize(
    ("inputs", "error", "place"),
    [
        ([], (400, "Empty"), "inputs "),
        ("", (400, "Empty"), "inputs "),
        (["a", ""], (400, "Empty"), "inputs[1]"),
        ([["a"], ["b", ""], ["c"]], (400, "Empty"), "inputs[1][1]"),
        ([["a"], [" "]], (400, "Empty"), "inputs[1]"),
        (["a", "b", "c"], (422, "Validation"), "inputs "),
        ([["a"], []], (422, "Validation"), "inputs[1]"),
        ([["a"], "b"], (422, "Validation"), "inputs "),
        ([["a"]] * 1025, (422, "Validation"), "inputs "),
        ([["a"], ["b", "word " * 500]], (422, "Validation"), "inputs[1]"),
    ],
)
async def test_wrong_inputs_of_a_classifier(
    http: HttpClient, inputs: object, error: tuple[int, str], place: str
) -> None:
    """Each error names the place in the body."""
    reply = await http.post("/predict", {"inputs": inputs, "truncate": False})
    assert _error(reply) == error
    assert reply.json["error"].startswith(place)


@in_module
async def test_the_root_does_what_the_model_does(http: HttpClient) -> None:
    """It embeds, classifies or ranks; a body of another model's kind is an error."""
    embedded = await http.post("/", {"inputs": TEXTS}, embedgrpc_model="embed")
    assert embedded.status == 200
    expected = await http.post("/embed", {"inputs": TEXTS}, embedgrpc_model="embed")
    assert embedded.json == expected.json
    body = {"query": "a question", "texts": TEXTS, "return_text": True}
    ranked = await http.post("/", body, embedgrpc_model="cross")
    assert ranked.status == 200
    assert ranked.json == (await http.post("/rerank", body, embedgrpc_model="cross")).json
    wrong: list[tuple[Any, str]] = [([["a"]], "embed"), ([1], "labels"), ([[1]], "labels")]
    for inputs, model in wrong:
        reply = await http.post("/", {"inputs": inputs}, embedgrpc_model=model)
        assert _error(reply) == (422, "Validation")
    for path, sent, model in (
        ("/", body, "labels"),
        ("/predict", {"inputs": "a"}, "embed"),
        ("/embed", {"inputs": "a"}, "cross"),
        ("/similarity", _compared(TEXTS), "cross"),
    ):
        # A model of another kind is a fault of the backend there.
        assert _error(await http.post(path, sent, embedgrpc_model=model)) == (424, "Backend")
    assert (await http.get("/")).status == 200


def _compared(texts: list[str], **parameters: object) -> dict[str, Any]:
    inputs = {"source_sentence": texts[0], "sentences": texts[1:]}
    return {"inputs": inputs, "parameters": parameters}


@in_module
async def test_similarities_are_cosines(service: Service, http: HttpClient) -> None:
    """They are the products of gRPC's vectors."""
    options = embedding_service_pb2.EmbedOptions(normalize=True)
    answer = await service.client.embed(*TEXTS, model="embed", options=options)
    vectors = np.asarray([list(one.dense.values) for one in answer.embeddings], np.float32)
    reply = await http.post("/similarity", _compared(TEXTS), embedgrpc_model="embed")
    assert reply.status == 200
    assert np.array_equal(np.asarray(reply.json, np.float32), vectors[1:] @ vectors[0])
    same = await http.post("/similarity", _compared(["a", "a"]), embedgrpc_model="embed")
    assert same.json == [pytest.approx(1)]


@in_module
@pytest.mark.parametrize(
    ("texts", "parameters", "error", "place"),
    [
        (["a"], {}, (400, "Empty"), "inputs.sentences "),
        (["", "a"], {}, (400, "Empty"), "inputs.source_sentence "),
        (["a", "b", ""], {}, (400, "Empty"), "inputs.sentences[1]"),
        (["a"] * 1025, {}, (422, "Validation"), "inputs.sentences "),
        (["a", "word " * 500], {"truncate": False}, (422, "Validation"), "inputs.sentences[0]"),
        (["a", "b"], {"prompt_name": "none"}, (422, "Validation"), "the model has no prompt"),
    ],
)
async def test_wrong_sentences(
    http: HttpClient, texts: list[str], parameters: Any, error: tuple[int, str], place: str
) -> None:
    """Each error names the sentence."""
    reply = await http.post("/similarity", _compared(texts, **parameters), embedgrpc_model="embed")
    assert _error(reply) == error
    assert reply.json["error"].startswith(place)


@in_module
async def test_tokens_are_those_of_grpc(service: Service, http: HttpClient) -> None:
    """Places are bytes of the text with its prompt; special tokens have none."""
    text = "naïve 世界 café"
    for prompt, sent in (("", {}), ("café: ", {"prompt_name": "query"})):
        body = {"inputs": [text, "b"]} | sent
        reply = await http.post("/tokenize", body, embedgrpc_model="prompted")
        assert reply.status == 200
        answer = await service.client.tokenizer.Tokenize(
            tokenizer_service_pb2.TokenizeRequest(texts=[prompt + text], model="prompted")
        )
        (expected,) = answer.texts
        tokens = reply.json[0]
        assert [one["id"] for one in tokens] == list(expected.ids)
        assert [one["special"] for one in tokens] == list(expected.special)
        data = (prompt + text).encode()
        for one, entry in zip(tokens, expected.tokens, strict=True):
            if one["special"]:
                assert (one["text"], one["start"], one["stop"]) == (entry, None, None)
            else:
                assert data[one["start"] : one["stop"]].decode() == one["text"]
        assert len(reply.json) == 2
    plain = await http.post("/tokenize", {"inputs": text, "add_special_tokens": False})
    assert not any(one["special"] for one in plain.json[0])


@in_module
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"inputs": []}, (400, "Empty")),
        ({"inputs": ["a"] * 1025}, (422, "Validation")),
        ({"inputs": "a", "prompt_name": "none"}, (422, "Validation")),
        ({"inputs": 1}, (422, "Validation")),
    ],
)
async def test_wrong_texts_to_tokenize(
    http: HttpClient, body: object, error: tuple[int, str]
) -> None:
    """Errors have the form of the dialect."""
    assert _error(await http.post("/tokenize", body)) == error


async def test_headers_say_what_an_answer_took(serve: Serve, backend: HashBackend) -> None:
    """Counts are those of the inputs; the parts of the time are not longer than all of it."""
    service = await serve(backend=backend, http_address="127.0.0.1:0")
    http = HttpClient(service)
    answer = await service.client.embed(*TEXTS)
    for path, body in (("/embed", {"inputs": TEXTS}), ("/v1/embeddings", {"input": TEXTS})):
        headers = (await http.post(path, body)).headers
        assert headers["x-compute-type"] == "cpu"
        assert headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
        assert headers["x-compute-tokens"] == str(answer.usage.input_tokens)
        assert headers["x-compute-time"] == headers["x-total-time"]
        total, *parts = (int(headers[name]) for name in TIMES)
        assert sum(parts) <= total + 1
    for reply in (await http.post("/embed", {"inputs": []}), await http.get("/info")):
        assert not [name for name in reply.headers if name.lower().startswith("x-compute")]


@in_module
async def test_a_header_chooses_the_model(http: HttpClient) -> None:
    """It counts where the body names no model."""
    assert (await http.post("/embed", {"inputs": "a"}, embedgrpc_model="embed")).status == 200
    for named, model in (({}, "embed"), ({"model": "prompted"}, "prompted")):
        body = {"input": "a"} | named
        reply = await http.post("/v1/embeddings", body, embedgrpc_model="embed")
        assert reply.json["model"] == model
    info = (await http.get("/info", **{"embedgrpc-model": "embed"})).json
    assert info["model_id"] == "embed"
    assert "embedding" in info["model_type"]
    own = (await http.get("/info")).json["model_type"]["classifier"]
    assert own["id2label"] == {str(index): label for label, index in own["label2id"].items()}
    unknown = await http.post("/embed", {"inputs": "a"}, embedgrpc_model="none")
    assert _error(unknown) == (404, "Validation")
    refused = await http.post("/v1/embeddings", {"input": "a"}, embedgrpc_model="x" * 200)
    assert (refused.status, refused.json["error"]["param"]) == (400, "embedgrpc-model")


async def test_the_model_of_the_setting(serve: Serve) -> None:
    """It serves the routes whose bodies name no model; other dialects keep the first one."""
    service = await serve(LABELS, EMBED, CROSS, http_address="127.0.0.1:0", tei_model="embed")
    http = HttpClient(service)
    assert (await http.get("/info")).json["model_id"] == "embed"
    assert len((await http.post("/", {"inputs": TEXTS})).json) == len(TEXTS)
    predicted = await http.post("/predict", {"inputs": "a"}, embedgrpc_model="labels")
    assert predicted.status == 200
    assert (await http.post("/v1/embeddings", {"input": "a"})).status == 400


@in_module
async def test_tokens_become_texts_again(http: HttpClient) -> None:
    """With or without special tokens, one list of ids or several."""
    tokens = (await http.post("/tokenize", {"inputs": ["a first", "text"]})).json
    ids = [[token["id"] for token in one] for one in tokens]
    assert (await http.post("/decode", {"ids": ids})).json == ["a first", "text"]
    assert (await http.post("/decode", {"ids": ids[1]})).json == ["text"]
    whole = await http.post("/decode", {"ids": ids[1], "skip_special_tokens": False})
    assert whole.json == ["<s>text</s>"]


@in_module
@pytest.mark.parametrize(
    ("ids", "error", "place"),
    [
        ([], (400, "Empty"), "ids "),
        ([5, 10_000_000], (422, "Validation"), "ids[1]"),
        ([[5], [7, 10_000_000]], (422, "Validation"), "ids[1][1]"),
        ([[5], [7] * 70_000], (422, "Validation"), "ids[1] "),
        ([5, -1], (422, "Validation"), "ids[1]"),
        ([5, 2**32], (422, "Validation"), "ids[1]"),
        ([5, [5]], (422, "Validation"), "ids must be"),
        ([[5]] * 1025, (422, "Validation"), "ids "),
    ],
)
async def test_wrong_ids(
    http: HttpClient, ids: list[Any], error: tuple[int, str], place: str
) -> None:
    """Each error names the place in the body."""
    reply = await http.post("/decode", {"ids": ids})
    assert _error(reply) == error
    assert reply.json["error"].startswith(place)


@in_module
async def test_vectors_of_tokens_are_those_of_grpc(service: Service, http: HttpClient) -> None:
    """Each text has one of each token that the model reads, equal bit for bit."""
    start: dict[str, Any] = {"truncation": common_pb2.TRUNCATION_START}
    cases: list[tuple[list[str], dict[str, Any], dict[str, Any]]] = [
        (TEXTS, {}, {}),
        (TEXTS, {"prompt_name": "query"}, {"prompt_name": "query"}),
        (["word " * 500], {"truncation_direction": "left"}, start),
    ]
    for texts, sent, wanted in cases:
        body = {"inputs": texts} | sent
        reply = await http.post("/embed_all", body, embedgrpc_model="prompted")
        assert reply.status == 200
        options = embedding_service_pb2.EmbedOptions(token_vectors=True, **wanted)
        answer = await service.client.embed(
            *texts, model="prompted", options=options, max_response_bytes=1 << 24
        )
        for found, one in zip(reply.json, answer.embeddings, strict=True):
            vectors = one.token_vectors.vectors
            rows = np.array(found, np.float32)
            assert rows.shape == (one.token_count, vectors.dimensions)
            assert np.array_equal(rows.ravel(), np.array(vectors.values, np.float32))


async def test_models_without_vectors_of_tokens(serve: Serve) -> None:
    """The error says why; empty inputs have their own."""
    static = ModelSettings(id="static", source=str(FIXTURES / "static-potion"))
    service = await serve(EMBED, CROSS, static, http_address="127.0.0.1:0")
    http = HttpClient(service)
    refused = await http.post("/embed_all", {"inputs": "a"}, embedgrpc_model="static")
    assert _error(refused) == (422, "Validation")
    assert "use a model with an encoder" in refused.json["error"]
    ranks = await http.post("/embed_all", {"inputs": "a"}, embedgrpc_model="cross")
    assert _error(ranks) == (424, "Backend")
    for inputs in ([], ["a", ""]):
        assert _error(await http.post("/embed_all", {"inputs": inputs})) == (400, "Empty")
    long = {"inputs": "word " * 500, "truncate": False}
    assert _error(await http.post("/embed_all", long)) == (422, "Validation")
