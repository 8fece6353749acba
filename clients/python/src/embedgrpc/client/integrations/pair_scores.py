"""Scores of pairs of a query and a document."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.client import Client
from embedgrpc.client.errors import BadResponseError


def score_pairs(
    client: Client, pairs: Sequence[tuple[str, str]], *, model: str = "", **options: Any
) -> NDArray[np.float32]:
    """Score pairs (query, document): float32 [pairs], in their order.

    The documents of one query travel together.

    Args:
        client: The client.
        pairs: The pairs.
        model: The id or an alias of the model; "" for the server's default.
        options: Options of `RerankOptions`.

    Raises:
        EmbedGrpcError: The call failed, or a pair did.
        TypeError: A text has the wrong type.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, (query, _) in enumerate(pairs):
        places[query].append(place)
    scores = np.full(len(pairs), np.nan, np.float32)
    if not pairs:
        return scores
    part_size = 0

    def inputs() -> Iterator[tuple[tuple[int, ...], str, list[str]]]:
        for query, all_places in places.items():
            for first in range(0, len(all_places), part_size):
                part = all_places[first : first + part_size]
                yield tuple(part), query, [pairs[place][1] for place in part]

    with client.rerank_stream(inputs(), model=model, **options) as stream:
        ready = stream.ready()
        part_size = min(ready.max_query_inputs, ready.max_in_flight_inputs)
        for result in stream:
            if result.error is not None:
                raise result.error.with_traceback(None)
            for ranked in result.ranking or ():
                scores[result.id[ranked.index]] = ranked.score
    if np.isnan(scores).any():
        raise BadResponseError("the response has no score for some of the documents")
    return scores
