"""Runs what a dialect has read from a request, by the rules of the contract."""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TypeVar

from embedgrpc.engine.tokenizing.texts import TextOrIds
from embedgrpc.engine.work import Call
from embedgrpc.server.http.exchange import Exchange
from embedgrpc.server.services.classify_batch import (
    ClassifiedBatch,
    ClassifyBatch,
    classify_batch,
)
from embedgrpc.server.services.embed_batch import EmbedBatch, EmbeddedBatch, embed_batch
from embedgrpc.server.services.rank_batch import RankBatch, rank_batch
from embedgrpc.server.services.ranker import RankedBatch
from embedgrpc.v1 import classify_service_pb2, embedding_service_pb2, rerank_service_pb2

# The size of a vector of float32 in base64, and as JSON numbers, in units of its bytes.
BASE64_COPIES = 1.4
JSON_COPIES = 3.5
# The size of a ranking as JSON, with each document twice, in units of its protobuf form. The
# documents came as JSON: in the answer they are escaped as much as in the request.
RANKING_COPIES = 5.0
# The size of a label with its score as JSON, in units of its protobuf form of at least 12 bytes.
LABEL_COPIES = 5.0

# The result of `pack`.
Packed = TypeVar("Packed")


async def embed(
    exchange: Exchange,
    texts: Sequence[TextOrIds],
    options: embedding_service_pb2.EmbedOptions,
    *,
    model: str | None,
    field: str,
    copies: float,
    pack: Callable[[EmbeddedBatch], Packed],
    default: str = "",
) -> Packed:
    """Embed texts.

    Args:
        exchange: The request.
        texts: Its texts, or the token ids of some.
        options: How to embed them, in the contract's terms.
        model: The name of the model in the body.
        field: The key of the body that holds the texts.
        copies: The size of the response, in units of its protobuf form.
        pack: Makes the body of the response. Called off the event loop if that takes long.
        default: The model if the request names none; empty for the server's default.

    Raises:
        EngineError: A rule is broken, or the texts cannot be embedded.
    """
    served = exchange.served
    call = exchange.begin()
    batch = EmbedBatch(
        exchange.find_model(model, default=default),
        texts,
        options,
        size_bytes=exchange.size_bytes,
        max_response_bytes=served.settings.max_response_bytes,
        request_model=model or "",
        response_copies=copies,
        field=field,
    )

    def counted(embedded: EmbeddedBatch) -> tuple[Packed, int, str]:
        return pack(embedded), embedded.input_tokens, embedded.loaded.device

    packed, tokens, device = await embed_batch(batch, call, served.settings, pack=counted)
    exchange.spent.add(device=device, texts=texts, tokens=tokens)
    return packed


async def rerank(
    exchange: Exchange,
    query: str,
    documents: Sequence[str],
    options: rerank_service_pb2.RerankOptions,
    *,
    model: str | None,
    pack: Callable[[RankedBatch], Packed],
    copies: float = RANKING_COPIES,
    default: str = "",
    call: Call | None = None,
) -> Packed:
    """Rank documents.

    Args:
        exchange: The request.
        query: Its query.
        documents: Its documents.
        options: How to rank them, in the contract's terms.
        model: The name of the model in the body.
        pack: Makes the body of the response. Called off the event loop if that takes long.
        copies: The size of the response, in units of its protobuf form.
        default: The model if the request names none; empty for the server's default.
        call: The call, where a request has several queries; by default it begins here.

    Raises:
        EngineError: A rule is broken, or the documents cannot be ranked. Its fields are those of
            the contract: query, documents, options.
    """
    served = exchange.served
    call = call or exchange.begin()
    batch = RankBatch(
        exchange.find_model(model, default=default),
        query,
        documents,
        options,
        size_bytes=exchange.size_bytes,
        max_response_bytes=served.settings.max_response_bytes,
        request_model=model or "",
        response_copies=copies,
    )

    def counted(ranked: RankedBatch) -> tuple[Packed, int, str]:
        return pack(ranked), ranked.ranking.input_tokens, ranked.ranker.loaded.device

    packed, tokens, device = await rank_batch(batch, call, served.settings, pack=counted)
    # The model reads the query with each document.
    exchange.spent.add(
        device=device, texts=(*documents, *repeat(query, len(documents))), tokens=tokens
    )
    return packed


async def classify(
    exchange: Exchange,
    texts: Sequence[str],
    options: classify_service_pb2.ClassifyOptions,
    *,
    are_pairs: bool,
    model: str | None,
    pack: Callable[[ClassifiedBatch], Packed],
    default: str = "",
    call: Call | None = None,
) -> Packed:
    """Classify texts, or pairs of texts.

    Args:
        exchange: The request.
        texts: Its texts; of pairs, the first and the second text in turn.
        options: How to classify them, in the contract's terms.
        are_pairs: Whether two texts are one input.
        model: The name of the model in the body.
        pack: Makes the body of the response. Called off the event loop if that takes long.
        default: The model if the request names none; empty for the server's default.
        call: The call, where a request has texts and pairs; by default it begins here.

    Raises:
        EngineError: A rule is broken, or the texts cannot be classified. Its fields are those of
            the contract: texts, pairs, options.
    """
    served = exchange.served
    call = call or exchange.begin()
    batch = ClassifyBatch(
        exchange.find_model(model, default=default),
        texts,
        are_pairs,
        options,
        size_bytes=exchange.size_bytes,
        max_response_bytes=served.settings.max_response_bytes,
        request_model=model or "",
        response_copies=LABEL_COPIES,
    )

    def counted(classified: ClassifiedBatch) -> tuple[Packed, int, str]:
        return pack(classified), classified.input_tokens, classified.loaded.device

    packed, tokens, device = await classify_batch(batch, call, served.settings, pack=counted)
    exchange.spent.add(device=device, texts=texts, tokens=tokens)
    return packed
