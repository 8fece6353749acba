"""Reranking and sparse vectors in the HTTP API of text-embeddings-inference."""

from typing import Annotated, Any

import msgspec

from embedgrpc.server.caller import Need, Service
from embedgrpc.server.http.dialects.answers import RankedText, SparseValue
from embedgrpc.server.http.dialects.tei import (
    TAG,
    as_truncation,
    default_model,
    embed_by,
    tei_error,
)
from embedgrpc.server.http.exchange import Answer, Exchange, Route
from embedgrpc.server.http.fields import (
    PromptName,
    RawScores,
    TeiTruncate,
    TextOrTexts,
    Texts,
    TruncationDirection,
    about,
)
from embedgrpc.server.http.rows import json_list
from embedgrpc.server.http.work import JSON_COPIES, rerank
from embedgrpc.server.services.embed_batch import EmbeddedBatch
from embedgrpc.server.services.ranker import RankedBatch
from embedgrpc.server.tei.rules import choose_scale
from embedgrpc.v1 import embedding_service_pb2, rerank_service_pb2


class RerankRequest(msgspec.Struct):
    """The body of POST /rerank with `texts`."""

    query: Annotated[str, about("What the texts are ranked for.")]
    texts: Annotated[Texts, about("The texts to rank.")]
    raw_scores: RawScores = None
    return_text: Annotated[
        bool | None, about("Whether each result has its text.", default=False)
    ] = None
    truncate: TeiTruncate = None
    truncation_direction: TruncationDirection = None


class SparseRequest(msgspec.Struct):
    """The body of POST /embed_sparse."""

    inputs: TextOrTexts
    truncate: TeiTruncate = None
    truncation_direction: TruncationDirection = None
    prompt_name: PromptName = None


async def rank_texts(exchange: Exchange) -> Answer:
    """Rank texts; the answer is a bare list, the best first."""
    return await rank_body(exchange, exchange.body)


async def rank_body(exchange: Exchange, body: RerankRequest) -> Answer:
    """Rank the texts of a body."""
    default = default_model(exchange)
    options = rerank_service_pb2.RerankOptions(
        return_documents=bool(body.return_text),
        truncation=as_truncation(body.truncate, body.truncation_direction),
        score_scale=_scale(exchange, default, raw=bool(body.raw_scores)),
    )
    return Answer(
        await rerank(
            exchange, body.query, body.texts, options, model=None, default=default, pack=_pack
        )
    )


def _scale(exchange: Exchange, default: str, *, raw: bool) -> rerank_service_pb2.ScoreScale:
    """Return the scale: a sigmoid whatever the model's own is, as in the original."""
    _, reranker = exchange.find_model(None, default=default).reranker()
    return choose_scale(reranker, raw=raw)


def _pack(ranked: RankedBatch) -> bytes:
    ranking, count = ranked.ranking, ranked.count
    results: list[dict[str, Any]] = []
    for index, score in zip(
        ranking.indices[:count].tolist(), ranking.scores[:count].tolist(), strict=True
    ):
        result: dict[str, Any] = {"index": index, "score": score}
        if ranked.ranker.options.return_documents:
            result["text"] = ranked.documents[index]
        results.append(result)
    return json_list(results)


async def embed_sparse(exchange: Exchange) -> Answer:
    """Return the sparse vector of each text, as a list of index and value."""
    body: SparseRequest = exchange.body
    options = embedding_service_pb2.EmbedOptions(
        representations=[embedding_service_pb2.REPRESENTATION_SPARSE],
        truncation=as_truncation(body.truncate, body.truncation_direction),
    )
    return await embed_by(
        exchange,
        body.inputs,
        options,
        prompt_name=body.prompt_name,
        # A weight of 8 bytes becomes an object of about 40.
        copies=2 * JSON_COPIES,
        pack=_pack_sparse,
    )


def _pack_sparse(embedded: EmbeddedBatch) -> bytes:
    embeddings = embedded.result.embeddings
    assert embeddings is not None and embeddings.sparse is not None  # noqa: S101, PT018 - it was asked for, and no text failed
    return json_list(
        [
            {"index": index, "value": value}
            for index, value in zip(one.indices.tolist(), one.values.tolist(), strict=True)
        ]
        for one in embeddings.sparse
    )


ROUTES = (
    Route(
        "POST",
        "/rerank",
        rank_texts,
        tei_error,
        "Rank texts",
        TAG,
        list[RankedText],
        body=RerankRequest,
        example={
            "query": "How tall is the tower?",
            "texts": ["It is red.", "The tower is 330 metres tall."],
        },
        key="texts",
        fields={"options.": "", "documents": "texts"},
        need=Need(Service.RERANK),
    ),
    Route(
        "POST",
        "/embed_sparse",
        embed_sparse,
        tei_error,
        "Embed texts as sparse vectors",
        TAG,
        list[list[SparseValue]],
        body=SparseRequest,
        example={"inputs": ["Rivers flow to the sea."]},
        fields={"options.": ""},
        need=Need(Service.EMBED),
    ),
)
