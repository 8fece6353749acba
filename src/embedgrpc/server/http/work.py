"""Runs what a dialect has read from a request, by the rules of the contract."""

from collections.abc import Callable, Sequence

from embedgrpc.engine.tokenizing.texts import TextOrIds
from embedgrpc.engine.work import Call
from embedgrpc.server.http.exchange import Exchange
from embedgrpc.server.services.embed_batch import EmbedBatch, EmbeddedBatch, embed_batch
from embedgrpc.server.services.rank_batch import RankBatch, rank_batch
from embedgrpc.server.services.ranker import RankedBatch
from embedgrpc.v1 import embedding_service_pb2, rerank_service_pb2

# The size of a vector of float32 in base64, and as JSON numbers, in units of its bytes.
BASE64_COPIES = 1.4
JSON_COPIES = 3.5
# The size of a ranking as JSON, with each document twice, in units of its protobuf form. The
# documents came as JSON: in the answer they are escaped as much as in the request.
RANKING_COPIES = 5.0


async def embed(
    exchange: Exchange,
    texts: Sequence[TextOrIds],
    options: embedding_service_pb2.EmbedOptions,
    *,
    model: str,
    field: str,
    copies: float,
    pack: Callable[[EmbeddedBatch], bytes],
) -> bytes:
    """Embed texts.

    Args:
        exchange: The request.
        texts: Its texts, or the token ids of some.
        options: How to embed them, in the contract's terms.
        model: The name of the model; may be empty.
        field: The key of the body that holds the texts.
        copies: The size of the response, in units of its protobuf form.
        pack: Makes the body of the response. Called off the event loop if that takes long.

    Raises:
        EngineError: A rule is broken, or the texts cannot be embedded.
    """
    served = exchange.served
    call = exchange.begin()
    batch = EmbedBatch(
        served.catalog.find(model),
        texts,
        options,
        size_bytes=exchange.size_bytes,
        max_response_bytes=served.settings.max_response_bytes,
        request_model=model,
        response_copies=copies,
        field=field,
    )
    return await embed_batch(batch, call, served.settings, pack=pack)


async def rerank(
    exchange: Exchange,
    query: str,
    documents: Sequence[str],
    options: rerank_service_pb2.RerankOptions,
    *,
    model: str,
    pack: Callable[[RankedBatch], bytes],
    copies: float = RANKING_COPIES,
    call: Call | None = None,
) -> bytes:
    """Rank documents.

    Args:
        exchange: The request.
        query: Its query.
        documents: Its documents.
        options: How to rank them, in the contract's terms.
        model: The name of the model; may be empty.
        pack: Makes the body of the response. Called off the event loop if that takes long.
        copies: The size of the response, in units of its protobuf form.
        call: The call, where a request has several queries; by default it begins here.

    Raises:
        EngineError: A rule is broken, or the documents cannot be ranked. Its fields are those of
            the contract: query, documents, options.
    """
    served = exchange.served
    call = call or exchange.begin()
    batch = RankBatch(
        served.catalog.find(model),
        query,
        documents,
        options,
        size_bytes=exchange.size_bytes,
        max_response_bytes=served.settings.max_response_bytes,
        request_model=model,
        response_copies=copies,
    )
    return await rank_batch(batch, call, served.settings, pack=pack)
