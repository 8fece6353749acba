"""Small services whose clients can change one URL and go on.

- triton-grpc-proxy: POST /v1/embedding.
- The FastAPI server of BGE-M3: POST /embeddings/ and POST /rerank/.
- The embedding-inference-api: POST /embed with `input`, GET /models, GET /health/status.
- The BGE-M3 service on Triton: GET /.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from embedgrpc.engine.errors import DeadlineExpiredError, EngineError
from embedgrpc.engine.results.vectors import Encoding, encode
from embedgrpc.server.caller import PUBLIC, Need, Service
from embedgrpc.server.contract.field_checks import check_count
from embedgrpc.server.http.dialects.answers import (
    InputAnswer,
    ModelNames,
    QueryEmbedding,
    ScoresAnswer,
    SentencesAnswer,
    StatusAnswer,
)
from embedgrpc.server.http.dialects.openai import openai_error, read_texts
from embedgrpc.server.http.exchange import Answer, Exchange, Route, to_json
from embedgrpc.server.http.failures import error_form, shown_message
from embedgrpc.server.http.fields import INPUTS_SETTING, Model, OneText, Texts, about
from embedgrpc.server.http.pair_scores import score_pairs
from embedgrpc.server.http.rows import dense_of, number_lists, number_rows
from embedgrpc.server.http.work import JSON_COPIES, embed
from embedgrpc.server.services.embed_batch import EmbeddedBatch
from embedgrpc.v1 import embedding_service_pb2, rerank_service_pb2

_OPTIONS = embedding_service_pb2.EmbedOptions()


class QueryItem(msgspec.Struct):
    """An entry of the body of POST /v1/embedding."""

    query: Annotated[str, about("The query to embed.")]


class SentencesRequest(msgspec.Struct):
    """The body of POST /embeddings/."""

    sentences: Annotated[Texts, about("The sentences to embed.")]


class PairsRequest(msgspec.Struct):
    """The body of POST /rerank/: pairs of query and document."""

    sentence_pairs: Annotated[
        list[tuple[str, str]],
        about("Pairs of a query and a document.", minItems=1, maxItems=INPUTS_SETTING),
    ]


class InputRequest(msgspec.Struct):
    """The body of POST /embed with `input`."""

    input: OneText
    model: Model = None


async def embed_queries(exchange: Exchange) -> Answer:
    """Embed queries as triton-grpc-proxy does."""
    texts = [one.query for one in exchange.body]

    def pack(embedded: EmbeddedBatch) -> bytes:
        rows = encode(dense_of(embedded), Encoding.FLOAT32).data
        return b"[%s]" % b",".join(b'{"embedding":%s}' % row for row in number_rows(rows))

    return await _embed(exchange, texts, field="query", pack=pack)


async def embed_sentences(exchange: Exchange) -> Answer:
    """Embed sentences as the FastAPI server of BGE-M3 does."""

    def pack(embedded: EmbeddedBatch) -> bytes:
        return msgspec.json.encode({"embeddings": _vectors(embedded)})

    with _timing():
        return await _embed(exchange, exchange.body.sentences, field="sentences", pack=pack)


async def embed_inputs(exchange: Exchange) -> Answer:
    """Embed texts as the embedding-inference-api does."""
    body: InputRequest = exchange.body

    def pack(embedded: EmbeddedBatch) -> bytes:
        return msgspec.json.encode(
            {
                "embeddings": _vectors(embedded),
                "model": embedded.served.id,
                "usage": {"total_tokens": embedded.input_tokens},
            }
        )

    return await _embed(
        exchange, read_texts(body.input), field="input", pack=pack, model=body.model or ""
    )


async def _embed(
    exchange: Exchange, texts: list[str], *, field: str, pack: Any, model: str = ""
) -> Answer:
    return Answer(
        await embed(
            exchange, texts, _OPTIONS, model=model, field=field, copies=JSON_COPIES, pack=pack
        )
    )


def _vectors(embedded: EmbeddedBatch) -> msgspec.Raw:
    return msgspec.Raw(number_lists(encode(dense_of(embedded), Encoding.FLOAT32).data))


async def score_sentences(exchange: Exchange) -> Answer:
    """Score pairs with the default model, in order.

    BGE-M3 scores with all of its representations: 0.4 dense, 0.2 sparse and 0.4 multi-vector.

    Raises:
        EngineError: There are no pairs or too many, or one cannot be scored.
    """
    body: PairsRequest = exchange.body
    limit = exchange.served.settings.max_inputs
    check_count(len(body.sentence_pairs), limit=limit, field="sentence_pairs")
    with _timing():
        found = await score_pairs(
            exchange,
            body.sentence_pairs,
            rerank_service_pb2.RerankOptions(),
            name=lambda index, _: f"sentence_pairs[{index}]",
        )
    return to_json({"scores": found.scores})


@contextmanager
def _timing() -> Iterator[None]:
    """Record in an expired deadline how long the work took."""
    began = time.monotonic()
    try:
        yield
    except DeadlineExpiredError as error:
        error.metadata["processingSeconds"] = f"{time.monotonic() - began:.3f}"
        raise


class SlowError(msgspec.Struct):
    """An error; one that took too long says how long, in seconds."""

    detail: str
    processing_time: float | UnsetType = UNSET


@error_form(SlowError)
def slow_error(error: EngineError, status: int) -> tuple[int, bytes]:
    """Write an error; one that took too long says how long, as the server of BGE-M3 does."""
    body = SlowError(shown_message(error))
    if (seconds := error.metadata.get("processingSeconds")) is not None:
        body.processing_time = float(seconds)
    return status, msgspec.json.encode(body)


async def list_models(exchange: Exchange) -> Answer:
    """List the models by what they can do."""
    ready = [one for one in exchange.served.catalog.usable() if one.loaded is not None]
    return to_json(
        {
            "embedding_models": [one.id for one in ready if one.loaded and one.loaded.embedder],
            "reranking_models": [one.id for one in ready if one.loaded and one.loaded.reranker],
        }
    )


async def show_status(exchange: Exchange) -> Answer:
    """Say whether the server can serve calls."""
    return to_json(
        {"status": "ok" if exchange.served.is_ready() else "unavailable", "service": "embedgrpc"}
    )


ROUTES = (
    Route(
        "POST", "/v1/embedding", embed_queries, openai_error, "Embed queries",
        "triton-grpc-proxy", list[QueryEmbedding], body=list[QueryItem],
        example=[{"query": "How tall is the tower?"}],
        need=Need(Service.EMBED),
    ),
    Route(
        "POST", "/embeddings/", embed_sentences, slow_error, "Embed sentences",
        "BGE-M3 on FastAPI", SentencesAnswer, body=SentencesRequest, key="sentences",
        fields={"options.": ""}, example={"sentences": ["Rivers flow to the sea."]},
        need=Need(Service.EMBED),
    ),
    Route(
        "POST", "/rerank/", score_sentences, slow_error, "Score pairs", "BGE-M3 on FastAPI",
        ScoresAnswer, body=PairsRequest, key="sentence_pairs",
        example={"sentence_pairs": [["How tall is the tower?", "It is 330 metres tall."]]},
        need=Need(Service.RERANK),
    ),
    Route(
        "POST", "/embed", embed_inputs, openai_error, "Embed texts", "embedding-inference-api",
        InputAnswer, body=InputRequest, key="input", fields={"options.": ""},
        example={"input": "Rivers flow to the sea."},
        need=Need(Service.EMBED),
    ),
    Route(
        "GET", "/models", list_models, openai_error, "List the models", "embedding-inference-api",
        ModelNames,
        need=Need(Service.MODELS),
    ),
    Route("GET", "/health/status", show_status, openai_error, "Status", "embedding-inference-api",
          StatusAnswer, is_open=True, need=PUBLIC),
    Route("GET", "/", show_status, openai_error, "Status", "BGE-M3 on Triton", StatusAnswer,
          is_open=True, need=PUBLIC),
)  # fmt: skip
