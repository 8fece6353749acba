"""Rerank and RerankStream of tei.v1."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from embedgrpc.engine.errors import DeadlineExpiredError, InvalidRequestError
from embedgrpc.server.calls.open_call import current_call
from embedgrpc.server.calls.requests import RequestStream
from embedgrpc.server.services.rank_batch import RankBatch, rank_batch
from embedgrpc.server.services.ranker import RankedBatch
from embedgrpc.server.tei.request import Prepared, TeiAnswer, TeiRequest, read_truncation
from embedgrpc.server.tei.rules import choose_scale
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import rerank_service_pb2


def prepare_ranking(request: TeiRequest) -> Prepared:
    """Read a `RerankRequest`."""
    message = request.message
    return _prepare(request, message.query, message.texts, message, size_bytes=message.ByteSize())


async def prepare_stream(request: TeiRequest, messages: RequestStream) -> Prepared:
    """Read the messages of a `RerankStream`, the first of which has the options.

    Raises:
        InvalidRequestError: There is none, there are too many, or the queries differ.
        DeadlineExpiredError: They did not come in time.
    """
    texts: list[str] = []
    first: Any = None
    size_bytes = 0
    try:
        async with asyncio.timeout_at(request.call.deadline):
            async for message in _held(messages):
                first = message if first is None else first
                if message.query != first.query:
                    raise InvalidRequestError(
                        f"the query of message {len(texts)} is not that of the first",
                        field="query",
                    )
                if len(texts) == request.settings.max_inputs:
                    raise InvalidRequestError(
                        f"the stream has more than {len(texts)} texts, which is the limit",
                        field="text",
                        metadata={"limit": str(len(texts))},
                    )
                texts.append(message.text)
                size_bytes += messages.last_bytes
                if size_bytes > request.settings.max_request_bytes:
                    raise InvalidRequestError(
                        f"the texts have more than {request.settings.max_request_bytes} bytes"
                        " together, which is the limit of a request",
                        field="text",
                        metadata={"limit": str(request.settings.max_request_bytes)},
                    )
    except TimeoutError:
        raise DeadlineExpiredError("the deadline passed before the last text came") from None
    if first is None:
        raise InvalidRequestError(
            "the stream ended without a message", metadata={"label": "NO_MESSAGE"}
        )
    return _prepare(request, first.query, texts, first, size_bytes=size_bytes)


async def _held(messages: RequestStream) -> AsyncIterator[Any]:
    """Yield the messages; each counts against the budget of requests until the call ends."""
    call = current_call()
    async for message in messages:
        if call is not None:
            call.hold_stream_request(messages.last_bytes)
        yield message


def _prepare(
    request: TeiRequest, query: str, texts: Sequence[str], options: Any, *, size_bytes: int
) -> Prepared:
    _, reranker = request.served.reranker()
    batch = RankBatch(
        request.served,
        query,
        texts,
        rerank_service_pb2.RerankOptions(
            truncation=read_truncation(options),
            score_scale=choose_scale(reranker, raw=options.raw_scores),
            return_documents=options.return_text,
        ),
        size_bytes=size_bytes,
        max_response_bytes=request.max_response_bytes,
    )

    async def run() -> TeiAnswer:
        wire, characters, tokens = await rank_batch(
            batch,
            request.call,
            request.settings,
            pack=lambda ranked: _pack(ranked, query),
        )
        return TeiAnswer(wire, request.took(characters=characters, tokens=tokens))

    # Only for streams of responses.
    return Prepared(0, run)


def _pack(ranked: RankedBatch, query: str) -> tuple[bytes, int, int]:
    """Return the ranks in wire form, and the characters and tokens of all pairs."""
    ranking, documents = ranked.ranking, ranked.documents
    returns = ranked.ranker.options.return_documents
    response = tei_pb2.RerankResponse(
        ranks=[
            tei_pb2.Rank(index=index, text=documents[index] if returns else None, score=score)
            for index, score in zip(ranking.indices.tolist(), ranking.scores.tolist(), strict=True)
        ]
    )
    characters = sum(map(len, documents)) + len(query) * len(documents)
    return response.SerializeToString(), characters, ranking.input_tokens
