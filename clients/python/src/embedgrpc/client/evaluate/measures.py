"""How well documents are ranked for a query."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_NDCG_CUT: Final = 10
_MRR_CUT: Final = 10
RECALL_CUT: Final = 100


class Quality(NamedTuple):
    """Figures from 0 to 1 of one query, or their means over queries.

    Attributes:
        ndcg: nDCG@10.
        recall: Recall@100.
        mrr: MRR@10.
    """

    ndcg: float
    recall: float
    mrr: float


def quality_of(found: Sequence[str], relevant: Mapping[str, int]) -> Quality:
    """Measure a ranking.

    Args:
        found: The ids of documents, best first; at least 100 where there are as many.
        relevant: The gain of each relevant document, by id; at least one, each above 0. Those that
            are in no ranking count, too.

    Source: trec_eval's `ndcg_cut_10`, `recall_100` and `recip_rank`, the last cut at 10.
    """
    gains = [relevant.get(document, 0) for document in found[:RECALL_CUT]]
    ideal = sorted(relevant.values(), reverse=True)
    first = next((place for place, gain in enumerate(gains[:_MRR_CUT], 1) if gain), None)
    return Quality(
        ndcg=_discounted(gains) / _discounted(ideal),
        recall=sum(map(bool, gains)) / len(relevant),
        mrr=1 / first if first else 0.0,
    )


def mean_quality(qualities: Sequence[Quality]) -> Quality:
    """Return the means of the figures of queries; at least one."""
    return Quality(*(math.fsum(column) / len(qualities) for column in zip(*qualities, strict=True)))


def _discounted(gains: Sequence[int]) -> float:
    return math.fsum(gain / math.log2(place + 1) for place, gain in enumerate(gains[:_NDCG_CUT], 1))
