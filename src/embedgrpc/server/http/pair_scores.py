"""Scores pairs of texts: the documents of each query together."""

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from embedgrpc.engine.errors import EngineError
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.http.exchange import Exchange
from embedgrpc.server.http.work import rerank
from embedgrpc.server.services.ranker import RankedBatch
from embedgrpc.v1 import rerank_service_pb2

_QUERIES_AT_ONCE = 16
_DOCUMENT = re.compile(r"documents\[(\d+)\]")


@dataclass(slots=True)
class PairScores:
    """The scores of some pairs.

    Attributes:
        scores: One for each pair, in order.
        tokens: Tokens that the model read.
        model: The id of the model.
        fingerprint: Identifies what the scores come from.
    """

    scores: list[float]
    tokens: int = 0
    model: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class _Scored:
    """The scores of a query's documents, in their order."""

    scores: Sequence[float]
    tokens: int
    model: str
    fingerprint: str


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
        ExceptionGroup: Of the EngineErrors of pairs that cannot be scored.
    """
    # One deadline for all queries.
    call = exchange.begin()
    by_query: dict[str, list[int]] = {}
    for index, (query, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(index)
    found = PairScores([math.nan] * len(pairs))

    async def score(query: str, indices: list[int]) -> None:
        documents = [pairs[index][1] for index in indices]
        try:
            scored = await rerank(
                exchange, query, documents, options, model=model, pack=_pack, call=call
            )
        except EngineError as error:
            _name_pair(error, indices, name)
            raise
        for index, value in zip(indices, scored.scores, strict=True):
            found.scores[index] = value
        found.tokens += scored.tokens
        found.model, found.fingerprint = scored.model, scored.fingerprint

    left = iter(by_query.items())
    while some := list(islice(left, _QUERIES_AT_ONCE)):
        async with asyncio.TaskGroup() as group:
            for query, indices in some:
                group.create_task(score(query, indices))
    return found


def _name_pair(error: EngineError, indices: list[int], name: Callable[[int, bool], str]) -> None:
    """Name the pair at fault in place of the document of one query."""
    place = _DOCUMENT.fullmatch(error.field)
    if place:
        rename_fields(error, {error.field: name(indices[int(place[1])], False)})
    elif error.field == "query":
        rename_fields(error, {error.field: name(indices[0], True)})


def _pack(ranked: RankedBatch) -> _Scored:
    ranking = ranked.ranking
    pairs = sorted(zip(ranking.indices.tolist(), ranking.scores.tolist(), strict=True))
    return _Scored(
        [score for _, score in pairs],
        ranking.input_tokens,
        ranked.ranker.served.id,
        ranked.ranker.loaded.fingerprint,
    )


def first_of(group: BaseExceptionGroup[EngineError]) -> EngineError:
    """Return the first error of a group, which may hold groups."""
    error: BaseException = group.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, EngineError):
        raise error
    return error
