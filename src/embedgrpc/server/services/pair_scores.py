"""Scores pairs of texts, for every protocol: the documents of each query together."""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from embedgrpc.engine.errors import EngineError
from embedgrpc.server.contract.field_names import rename_fields
from embedgrpc.server.rpc.handlers import forget_frames
from embedgrpc.server.services.ranker import RankedBatch

_QUERIES_AT_ONCE = 16
_DOCUMENT = re.compile(r"documents\[(\d+)\]")


@dataclass(slots=True)
class PairScores:
    """The scores of some pairs.

    Attributes:
        scores: One for each pair, in order.
        tokens: Tokens that the model read.
        truncated: Texts that were cut.
        model: The id of the model.
        fingerprint: Identifies what the scores come from.
    """

    scores: list[float]
    tokens: int = 0
    truncated: int = 0
    model: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class QueryScores:
    """The scores of a query's documents, in their order; else as `PairScores`."""

    scores: Sequence[float]
    tokens: int
    truncated: int
    model: str
    fingerprint: str


async def score_pairs(
    pairs: Sequence[tuple[str, str]],
    score: Callable[[str, Sequence[str]], Awaitable[QueryScores]],
    *,
    name: Callable[[int, bool], str],
) -> PairScores:
    """Score pairs of query and document.

    Args:
        pairs: At least one.
        score: Scores the documents of one query.
        name: Returns the place of a pair in the request; of its query, if the flag is true, or of
            its document.

    Raises:
        EngineError: A pair cannot be scored.
    """
    by_query: dict[str, list[int]] = {}
    for index, (query, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(index)
    found = PairScores([math.nan] * len(pairs))

    async def score_query(query: str, indices: list[int]) -> None:
        try:
            scored = await score(query, [pairs[index][1] for index in indices])
        except EngineError as error:
            _name_pairs(error, indices, name)
            raise
        for index, value in zip(indices, scored.scores, strict=True):
            found.scores[index] = value
        found.tokens += scored.tokens
        found.truncated += scored.truncated
        found.model, found.fingerprint = scored.model, scored.fingerprint

    left = iter(by_query.items())
    failure: Exception | None = None
    while failure is None and (some := list(islice(left, _QUERIES_AT_ONCE))):
        try:
            async with asyncio.TaskGroup() as group:
                for query, indices in some:
                    group.create_task(score_query(query, indices))
        except ExceptionGroup as raised:
            failure = raised.exceptions[0]
            # The frame that raised it references it.
            forget_frames(raised)
    # Outside the block: else it would reference the group, which references it.
    if failure is not None:
        raise failure
    return found


def _name_pairs(error: EngineError, indices: list[int], name: Callable[[int, bool], str]) -> None:
    """Name the pairs at fault in place of the documents of one query."""
    for one in (error, *error.others):
        place = _DOCUMENT.fullmatch(one.field)
        if place:
            rename_fields(one, {one.field: name(indices[int(place[1])], False)})
        elif one.field == "query":
            rename_fields(one, {one.field: name(indices[0], True)})


def scores_of(ranked: RankedBatch) -> QueryScores:
    """Return the scores of a ranking, in the order of the documents."""
    ranking = ranked.ranking
    pairs = sorted(zip(ranking.indices.tolist(), ranking.scores.tolist(), strict=True))
    return QueryScores(
        [score for _, score in pairs],
        ranking.input_tokens,
        ranking.truncated_inputs,
        ranked.ranker.served.id,
        ranked.ranker.loaded.fingerprint,
    )
