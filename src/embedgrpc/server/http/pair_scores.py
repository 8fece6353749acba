"""Scores pairs of texts from a request."""

from collections.abc import Callable, Sequence

from embedgrpc.server.http.exchange import Exchange
from embedgrpc.server.http.work import rerank
from embedgrpc.server.services import pair_scores
from embedgrpc.server.services.pair_scores import PairScores, QueryScores, scores_of
from embedgrpc.v1 import rerank_service_pb2


async def score_pairs(
    exchange: Exchange,
    pairs: Sequence[tuple[str, str]],
    options: rerank_service_pb2.RerankOptions,
    *,
    name: Callable[[int, bool], str],
    model: str | None = None,
) -> PairScores:
    """Score pairs of query and document.

    Args:
        exchange: The request.
        pairs: At least one.
        options: How, in the contract's terms.
        name: Returns the place of a pair in the body; of its query, if the flag is true, or of its
            document.
        model: The name of the model in the body.

    Raises:
        EngineError: A pair cannot be scored.
    """
    # One deadline for all queries.
    call = exchange.begin()

    async def score(query: str, documents: Sequence[str]) -> QueryScores:
        return await rerank(
            exchange, query, documents, options, model=model, pack=scores_of, call=call
        )

    return await pair_scores.score_pairs(pairs, score, name=name)
