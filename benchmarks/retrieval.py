"""Exact search over embedded texts, and its quality."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import CRANFIELD
from embedgrpc.client import Client

_NDCG_CUT = 10
_RECALL_CUT = 100


def read_judgements() -> dict[str, set[str]]:
    """Return the relevant documents of each query: codes 1 to 4; -1 is not relevant."""
    relevant: dict[str, set[str]] = defaultdict(set)
    lines = (CRANFIELD / "qrels.tsv").read_text("utf-8").splitlines()
    for line in lines[1:]:
        query, document, code = line.split("\t")
        if int(code) > 0:
            relevant[query].add(document)
    return relevant


def search_quality(
    client: Client,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    relevant: Mapping[str, set[str]],
    *,
    recall_cut: int = _RECALL_CUT,
) -> dict[str, float]:
    """Embed documents and queries through StreamEmbed, and search by exact cosine.

    Args:
        client: A client of a server; its default model is used.
        documents: Texts by id.
        queries: Texts by id.
        relevant: The ids of the relevant documents by query.
        recall_cut: How many documents count for recall.

    Returns:
        The means over the queries of nDCG@10, with relevance 0 or 1, and of recall@100, or at
        another cut.
    """
    corpus = _embed(client, documents)
    scores = _embed(client, queries) @ corpus.T
    ids = np.array(list(documents))
    ndcg, recall = [], []
    for query, row in zip(queries, scores, strict=True):
        found = ids[np.argsort(-row, kind="stable")].tolist()
        ndcg.append(measure_ndcg(found[:_NDCG_CUT], relevant[query]))
        hits = len(relevant[query].intersection(found[:recall_cut]))
        recall.append(hits / len(relevant[query]))
    return {
        f"ndcg@{_NDCG_CUT}": float(np.mean(ndcg)),
        f"recall@{recall_cut}": float(np.mean(recall)),
    }


def _embed(client: Client, texts: Mapping[str, str]) -> NDArray[np.float32]:
    """Return float32 [texts, dimensions] in the order of the texts."""
    rows: dict[object, Any] = {
        one.id: one.vector for one in client.embed_stream(texts.items(), order="completion")
    }
    return np.stack([rows[identifier] for identifier in texts])


def measure_ndcg(found: list[str], relevant: set[str]) -> float:
    """Return nDCG of what was found, with relevance 0 or 1."""
    gain = sum(1 / math.log2(place + 2) for place, one in enumerate(found) if one in relevant)
    best = sum(1 / math.log2(place + 2) for place in range(min(len(relevant), len(found))))
    return gain / best
