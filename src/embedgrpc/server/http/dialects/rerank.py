"""Reranking for clients of Cohere, Jina, vLLM, LiteLLM and the embedding-inference-api.

Source: the API references of Cohere v1 and v2 and of Jina, and what their clients parse. Each
client reads its own keys of the answer and ignores the others.
"""

from typing import Annotated, Any
from uuid import uuid4

import msgspec

from embedgrpc.engine.errors import InvalidRequestError, UnsupportedError
from embedgrpc.server.caller import Need, Service
from embedgrpc.server.contract.words import read_truncation
from embedgrpc.server.http.dialects.answers import RerankAnswer
from embedgrpc.server.http.dialects.openai import openai_error
from embedgrpc.server.http.exchange import Answer, Exchange, Route
from embedgrpc.server.http.fields import (
    INPUTS_SETTING,
    Instruction,
    Model,
    OwnLimit,
    Truncate,
    about,
)
from embedgrpc.server.http.numbers import Int32
from embedgrpc.server.http.rows import json_list
from embedgrpc.server.http.work import rerank
from embedgrpc.server.services.ranker import RankedBatch
from embedgrpc.v1 import rerank_service_pb2

_TAG = "Cohere, Jina, vLLM"
# Cohere's unit: a query with up to a hundred documents.
_DOCUMENTS_PER_UNIT = 100
_EXAMPLE = {
    "query": "How tall is the tower?",
    "documents": ["It is red.", "The tower is 330 metres tall."],
    "top_n": 1,
}
_FIELDS = {"options.max_tokens": "max_tokens_per_doc", "options.": ""}


class RerankDocumentsRequest(msgspec.Struct):
    """The body of POST /rerank, /v1/rerank and /v2/rerank."""

    query: Annotated[str, about("What the documents are ranked for.")]
    documents: Annotated[
        list[str | dict[str, Any]],
        about(
            "The documents: texts, or objects with a text under text.",
            minItems=1,
            maxItems=INPUTS_SETTING,
        ),
    ]
    model: Model = None
    top_n: Annotated[
        Int32 | None, about("How many of the best to return; 0 returns all.", minimum=0, default=0)
    ] = None
    return_documents: Annotated[
        bool | None, about("Whether each result has its document.", default=True)
    ] = None
    max_tokens_per_doc: Annotated[
        Int32 | None,
        about("Cut each document to so many tokens; 0 means the model's limit.", minimum=0),
    ] = None
    max_chunks_per_doc: Annotated[
        Int32 | None, about("Only 1 is accepted: a document is not split.", enum=[1, None])
    ] = None
    rank_fields: Annotated[
        list[str] | None, about("Only the field text is accepted.", enum=[["text"], None])
    ] = None
    truncate_prompt_tokens: OwnLimit = None
    truncate: Truncate = None
    instruction: Instruction = None


async def rank(exchange: Exchange) -> Answer:
    """Rank documents, the best first."""
    body: RerankDocumentsRequest = exchange.body
    _refuse_unsupported(body)
    texts = [_text_of(one, index) for index, one in enumerate(body.documents)]
    options = rerank_service_pb2.RerankOptions(
        # 0, the default of vLLM's clients, means all.
        top_n=body.top_n or 0,
        # Cohere v2 has no such key, and vLLM always returns them.
        return_documents=body.return_documents is not False,
        max_tokens=body.max_tokens_per_doc or 0,
        truncation=read_truncation(body.truncate),
    )
    if body.instruction is not None:
        options.instruction = body.instruction
    return Answer(
        await rerank(exchange, body.query, texts, options, model=body.model or "", pack=_pack)
    )


def _refuse_unsupported(body: RerankDocumentsRequest) -> None:
    """Refuse keys that change the scores and cannot be followed."""
    if body.rank_fields not in (None, ["text"]):
        raise UnsupportedError("rank_fields may only be ['text']", field="rank_fields")
    if body.max_chunks_per_doc not in {None, 1}:
        raise UnsupportedError(
            "max_chunks_per_doc is not supported: a document is not split. Leave it out, or send"
            " the parts as documents",
            field="max_chunks_per_doc",
        )
    # -1 means the model's own limit, which holds anyway.
    if body.truncate_prompt_tokens not in {None, -1}:
        raise UnsupportedError(
            "truncate_prompt_tokens is not supported, because it counts query and document"
            " together: use max_tokens_per_doc",
            field="truncate_prompt_tokens",
        )


def _text_of(document: str | dict[str, Any], index: int) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"documents[{index}] has no text: it must be a string, or an object with a string"
            " under text",
            field=f"documents[{index}]",
        )
    return text


def _pack(ranked: RankedBatch) -> bytes:
    ranking, count = ranked.ranking, ranked.count
    returns = ranked.ranker.options.return_documents
    results: list[dict[str, Any]] = []
    for index, score in zip(
        ranking.indices[:count].tolist(), ranking.scores[:count].tolist(), strict=True
    ):
        result: dict[str, Any] = {"index": index, "relevance_score": score, "score": score}
        if returns:
            text = ranked.documents[index]
            result |= {"document": {"text": text}, "text": text}
        results.append(result)
    tokens = ranking.input_tokens
    return msgspec.json.encode(
        {
            "id": f"rerank-{uuid4().hex}",
            "model": ranked.ranker.served.id,
            "results": msgspec.Raw(json_list(results)),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": -(-len(ranked.documents) // _DOCUMENTS_PER_UNIT)},
            },
            "fingerprint": ranked.ranker.loaded.fingerprint,
        }
    )


ROUTES = tuple(
    Route(
        "POST",
        path,
        rank,
        openai_error,
        "Rank documents",
        _TAG,
        RerankAnswer,
        body=RerankDocumentsRequest,
        example=_EXAMPLE,
        key="documents",
        fields=_FIELDS,
        need=Need(Service.RERANK),
    )
    for path in ("/v1/rerank", "/v2/rerank", "/rerank")
)
