"""The unary methods of tei.v1, compared with those of embedgrpc.v1."""

from typing import Any

import grpc
import pytest

from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import classify_service_pb2, embedding_service_pb2, rerank_service_pb2
from tests.server.failures import failure_of
from tests.server.service import PATIENCE_S, Service
from tests.server.services.test_health import NOT_SERVING, SERVING
from tests.server.tei.conftest import Tei

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "The café opens at nine. 東京"
LONG = "word " * 400
GEMMA = (("embedgrpc-model", "gemma-dense"),)
SPLADE = (("embedgrpc-model", "splade-bert"),)
CROSS_MODEL = (("embedgrpc-model", "cross"),)
NLI = (("embedgrpc-model", "classify-nli"),)
TOXICITY = (("embedgrpc-model", "classify-toxicity"),)
HEADERS = {
    "x-compute-type",
    "x-compute-time",
    "x-compute-characters",
    "x-compute-tokens",
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"truncation": "NONE", "normalize": True}),
        ({"normalize": False}, {"normalize": False}),
        ({"dimensions": 8}, {"dimensions": 8, "normalize": True}),
        ({"truncate": True, "inputs": LONG}, {"truncation": "END", "normalize": True}),
        (
            {"truncate": True, "truncation_direction": 1, "inputs": LONG + "end"},
            {"truncation": "START", "normalize": True},
        ),
        ({"prompt_name": "query"}, {"prompt_name": "query", "normalize": True}),
    ],
)
async def test_vectors_are_those_of_embedgrpc(
    service: Service, tei: Tei, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    """Every option, bit for bit, and the tokens."""
    fields = {"inputs": TEXT} | fields
    if "truncation" in options:
        options |= {"truncation": f"TRUNCATION_{options['truncation']}"}
    response = await tei.embed.Embed(
        tei_pb2.EmbedRequest(**fields), metadata=GEMMA, timeout=PATIENCE_S
    )
    expected = await service.client.embed(
        fields["inputs"],
        model="gemma-dense",
        options=embedding_service_pb2.EmbedOptions(**options),
    )
    assert list(response.embeddings) == list(expected.embeddings[0].dense.values)
    assert response.metadata.compute_tokens == expected.usage.input_tokens
    assert response.metadata.compute_chars == len(fields["inputs"])


async def test_what_a_request_took_is_in_its_headers_and_its_message(tei: Tei) -> None:
    """The parts are no longer than the whole, and none is invented."""
    call = tei.embed.Embed(tei_pb2.EmbedRequest(inputs=TEXT), timeout=PATIENCE_S)
    headers = {str(key): str(value) for key, value in await call.initial_metadata()}
    took = (await call).metadata
    assert headers.keys() >= HEADERS
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-compute-characters"] == str(len(TEXT)) == str(took.compute_chars)
    assert headers["x-compute-tokens"] == str(took.compute_tokens)
    parts = (took.tokenization_time_ns, took.queue_time_ns, took.inference_time_ns)
    assert all(parts)
    assert sum(parts) <= took.total_time_ns
    assert headers["x-total-time"] == str(took.total_time_ns // 1_000_000)
    assert headers["x-inference-time"] == str(took.inference_time_ns // 1_000_000)


async def test_sparse_vectors_are_those_of_embedgrpc(service: Service, tei: Tei) -> None:
    """Each term with its weight, in order."""
    response = await tei.embed.EmbedSparse(
        tei_pb2.EmbedSparseRequest(inputs=TEXT), metadata=SPLADE, timeout=PATIENCE_S
    )
    expected = await service.client.embed(TEXT, model="splade-bert")
    sparse = expected.embeddings[0].sparse
    assert len(sparse.indices) > 1
    assert [one.index for one in response.sparse_embeddings] == list(sparse.indices)
    assert [one.value for one in response.sparse_embeddings] == list(sparse.values)


async def test_vectors_of_tokens_are_those_of_embedgrpc(service: Service, tei: Tei) -> None:
    """Of all tokens, special tokens included."""
    response = await tei.embed.EmbedAll(
        tei_pb2.EmbedAllRequest(inputs=TEXT, prompt_name="query"),
        metadata=GEMMA,
        timeout=PATIENCE_S,
    )
    expected = await service.client.embed(
        TEXT,
        model="gemma-dense",
        options=embedding_service_pb2.EmbedOptions(token_vectors=True, prompt_name="query"),
    )
    vectors = expected.embeddings[0].token_vectors.vectors
    values = [value for one in response.token_embeddings for value in one.embeddings]
    assert len(response.token_embeddings) == expected.usage.input_tokens
    assert response.metadata.compute_tokens == expected.usage.input_tokens
    assert values == list(vectors.values)


@pytest.mark.parametrize("raw", [False, True])
async def test_ranks_are_those_of_embedgrpc(service: Service, tei: Tei, raw: bool) -> None:  # noqa: FBT001 - pytest passes parameters by name
    """Unary and as a stream: scores, order and texts."""
    texts = ["tea is hot", "a bicycle", "coffee is a hot drink", "a bicycle"]
    ranked = rerank_service_pb2.RerankOptions(
        score_scale=rerank_service_pb2.SCORE_SCALE_RAW
        if raw
        else rerank_service_pb2.SCORE_SCALE_SIGMOID
    )
    expected = await service.client.rerank.Rerank(
        rerank_service_pb2.RerankRequest(
            model="cross", query="hot drinks", documents=texts, options=ranked
        ),
        timeout=PATIENCE_S,
    )
    unary = await tei.rerank.Rerank(
        tei_pb2.RerankRequest(query="hot drinks", texts=texts, raw_scores=raw, return_text=True),
        metadata=CROSS_MODEL,
        timeout=PATIENCE_S,
    )
    messages = [
        tei_pb2.RerankStreamRequest(query="hot drinks", text=text, raw_scores=raw, return_text=True)
        for text in texts
    ]
    streamed = await tei.rerank.RerankStream(
        iter(messages), metadata=CROSS_MODEL, timeout=PATIENCE_S
    )
    for response in (unary, streamed):
        assert [(one.index, one.score) for one in response.ranks] == [
            (one.index, one.score) for one in expected.results
        ]
        assert [one.text for one in response.ranks] == [texts[one.index] for one in response.ranks]
        assert response.metadata.compute_tokens == expected.usage.input_tokens
        assert response.metadata.compute_chars == sum(len(one) + len("hot drinks") for one in texts)
    without = await tei.rerank.Rerank(
        tei_pb2.RerankRequest(query="hot drinks", texts=texts),
        metadata=CROSS_MODEL,
        timeout=PATIENCE_S,
    )
    assert not any(one.HasField("text") for one in without.ranks)


@pytest.mark.parametrize(
    ("model", "raw", "function"),
    [(NLI, False, "SOFTMAX"), (NLI, True, "RAW"), (TOXICITY, False, "SOFTMAX")],
)
async def test_predictions_are_those_of_embedgrpc(
    service: Service,
    tei: Tei,
    model: tuple[tuple[str, str]],
    raw: bool,  # noqa: FBT001 - pytest passes parameters by name
    function: str,
) -> None:
    """Labels with their scores, the best first."""
    response = await tei.predict.Predict(
        tei_pb2.PredictRequest(inputs=TEXT, raw_scores=raw), metadata=model, timeout=PATIENCE_S
    )
    expected = await service.client.classify.Classify(
        classify_service_pb2.ClassifyRequest(
            model=model[0][1],
            texts=[TEXT],
            options=classify_service_pb2.ClassifyOptions(
                score_function=f"SCORE_FUNCTION_{function}"
            ),
        ),
        timeout=PATIENCE_S,
    )
    assert [(one.label, one.score) for one in response.predictions] == [
        (one.label, one.score) for one in expected.classifications[0].labels
    ]
    assert response.metadata.compute_tokens == expected.usage.input_tokens


async def test_pairs_are_classified(service: Service, tei: Tei) -> None:
    """Two texts are a pair, one is a text, and other numbers are refused."""

    async def predict(*inputs: str) -> list[tuple[str, float]]:
        response = await tei.predict.PredictPair(
            tei_pb2.PredictPairRequest(inputs=inputs), metadata=NLI, timeout=PATIENCE_S
        )
        return [(one.label, one.score) for one in response.predictions]

    expected = await service.client.classify.Classify(
        classify_service_pb2.ClassifyRequest(
            model="classify-nli",
            pairs=[classify_service_pb2.TextPair(first="a man sleeps", second="a man is awake")],
            options=classify_service_pb2.ClassifyOptions(
                score_function=classify_service_pb2.SCORE_FUNCTION_SOFTMAX
            ),
        ),
        timeout=PATIENCE_S,
    )
    assert await predict("a man sleeps", "a man is awake") == [
        (one.label, one.score) for one in expected.classifications[0].labels
    ]
    single = await tei.predict.Predict(
        tei_pb2.PredictRequest(inputs="a man sleeps"), metadata=NLI, timeout=PATIENCE_S
    )
    assert await predict("a man sleeps") == [(one.label, one.score) for one in single.predictions]
    for inputs in ((), ("a", "b", "c")):
        failure = await failure_of(predict(*inputs))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"inputs has {len(inputs)} texts; it must have 1 or 2" in failure.details


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("prompt", ["", "query"])
async def test_tokens_have_their_places_in_bytes(
    service: Service,
    tei: Tei,
    special: bool,  # noqa: FBT001 - pytest passes parameters by name
    prompt: str,
) -> None:
    """Those of the text with its prompt; special tokens have none."""
    loaded = service.server.catalog.find("gemma-dense").ready()
    response = await tei.tokenize.Tokenize(
        tei_pb2.EncodeRequest(inputs=TEXT, add_special_tokens=special, prompt_name=prompt or None),
        metadata=GEMMA,
        timeout=PATIENCE_S,
    )
    whole = loaded.properties.prompts.get(prompt, "") + TEXT
    data = whole.encode()
    content = [one for one in response.tokens if not one.special]
    assert len(content) > len(TEXT.split())
    for token in content:
        assert data[token.start : token.stop].decode() == token.text
    others = [one for one in response.tokens if one.special]
    assert bool(others) == special
    for token in others:
        assert token.text
        assert not token.HasField("start")
        assert not token.HasField("stop")
    embedded = await service.client.embed(
        TEXT,
        model="gemma-dense",
        options=embedding_service_pb2.EmbedOptions(prompt_name=prompt or None),
    )
    if special:
        assert len(response.tokens) == embedded.usage.input_tokens


async def test_tokens_become_text_again(tei: Tei) -> None:
    """With special tokens and without; ids that do not exist are refused."""
    tokens = await tei.tokenize.Tokenize(
        tei_pb2.EncodeRequest(inputs="a plain text", add_special_tokens=True),
        metadata=GEMMA,
        timeout=PATIENCE_S,
    )
    ids = [one.id for one in tokens.tokens]

    async def decode(ids: list[int], *, skip: bool = False) -> str:
        response = await tei.tokenize.Decode(
            tei_pb2.DecodeRequest(ids=ids, skip_special_tokens=skip),
            metadata=GEMMA,
            timeout=PATIENCE_S,
        )
        text: str = response.text
        return text

    assert "a plain text" in await decode(ids, skip=True)
    whole = await decode(ids)
    assert whole != await decode(ids, skip=True)
    assert "a plain text" in whole
    assert await decode([]) == ""
    assert (await decode(ids * 1000, skip=True)).count("plain") == 1000
    for bad, part in (([5, 2**32 - 1], "ids[1] is 4294967295"), ([0] * 65_537, "65537 ids")):
        failure = await failure_of(decode(bad))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert part in failure.details


async def test_the_model_is_described(service: Service, tei: Tei) -> None:
    """Its kind, limits and revision."""
    info = await tei.info.Info(tei_pb2.InfoRequest(), timeout=PATIENCE_S)
    loaded = service.server.catalog.find("embed").ready()
    assert info.model_id == "embed"
    assert info.model_type == tei_pb2.MODEL_TYPE_EMBEDDING
    assert info.max_input_length == loaded.properties.max_tokens
    assert info.model_dtype == "float32"
    assert info.version
    for model, kind in ((CROSS_MODEL, "RERANKER"), (NLI, "CLASSIFIER")):
        info = await tei.info.Info(tei_pb2.InfoRequest(), metadata=model, timeout=PATIENCE_S)
        assert tei_pb2.ModelType.Name(info.model_type) == f"MODEL_TYPE_{kind}"


@pytest.mark.parametrize(
    ("asked", "code", "part"),
    [
        (("Embed", tei_pb2.EmbedRequest(), ()), "INVALID_ARGUMENT", "inputs"),
        (("Embed", tei_pb2.EmbedRequest(inputs=LONG), ()), "INVALID_ARGUMENT", "inputs has"),
        (
            ("Embed", tei_pb2.EmbedRequest(inputs="a", prompt_name="none"), ()),
            "INVALID_ARGUMENT",
            "no prompt 'none'",
        ),
        (
            ("Embed", tei_pb2.EmbedRequest.FromString(b"\x0a\x01a\x20\x07"), ()),
            "INVALID_ARGUMENT",
            "truncation_direction",
        ),
        (
            ("Embed", tei_pb2.EmbedRequest(inputs="a", dimensions=2**32 - 1), ()),
            "INVALID_ARGUMENT",
            "dimensions is 4294967295",
        ),
        (
            ("Embed", tei_pb2.EmbedRequest(inputs="a", dimensions=5000), ()),
            "INVALID_ARGUMENT",
            "dimensions is 5000",
        ),
        (
            ("Embed", tei_pb2.EmbedRequest(inputs="a"), (("embedgrpc-model", "absent"),)),
            "NOT_FOUND",
            "no model 'absent'",
        ),
        (("Embed", tei_pb2.EmbedRequest(inputs="a"), CROSS_MODEL), "FAILED_PRECONDITION", "embed"),
        (
            ("EmbedAll", tei_pb2.EmbedAllRequest(inputs="a"), SPLADE),
            "FAILED_PRECONDITION",
            "",
        ),
        (("EmbedSparse", tei_pb2.EmbedSparseRequest(inputs="a"), ()), "FAILED_PRECONDITION", ""),
        (("Predict", tei_pb2.PredictRequest(inputs="a"), ()), "FAILED_PRECONDITION", "labels"),
        (("Rerank", tei_pb2.RerankRequest(query="a"), CROSS_MODEL), "INVALID_ARGUMENT", "texts"),
        (
            ("Rerank", tei_pb2.RerankRequest(query="a", texts=["b", ""]), CROSS_MODEL),
            "INVALID_ARGUMENT",
            "texts[1]",
        ),
    ],
)
async def test_failures_name_the_field(
    tei: Tei, asked: tuple[str, Any, Any], code: str, part: str
) -> None:
    """As tei.v1 names it, with the status that its clients know."""
    method, message, metadata = asked
    stub = next(stub for stub in (tei.embed, tei.predict, tei.rerank) if hasattr(stub, method))
    failure = await failure_of(
        getattr(stub, method)(message, metadata=metadata, timeout=PATIENCE_S)
    )
    assert failure.code is grpc.StatusCode[code]
    assert part in failure.details
    assert "options" not in failure.details
    assert failure.reason


async def test_health_and_reflection_know_the_services(service: Service) -> None:
    """A service is healthy if the model has its task."""
    statuses = {
        name: await service.client.status(f"tei.v1.{name}")
        for name in ("Info", "Embed", "Predict", "Rerank", "Tokenize")
    }
    assert statuses == {
        "Info": SERVING,
        "Embed": SERVING,
        "Predict": NOT_SERVING,
        "Rerank": SERVING,
        "Tokenize": SERVING,
    }
