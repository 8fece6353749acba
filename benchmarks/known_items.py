"""Searches for which the right document is known, without judges: by where a query comes from.

There are thousands of queries, so that small differences between two forms of a model show. The
second collection depends on the version of Python.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import documents

_SENTENCE_WORDS = range(6, 61)
_SUMMARY_WORDS_MIN = 4
_DESCRIPTION_WORDS = range(12, 61)
_CUT = 10
# Half as many queries as there are, to keep a run short.
_DOCSTRINGS_EVERY = 2
_FOREIGN = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"})


@dataclass(frozen=True, slots=True)
class KnownItems:
    """A collection.

    Attributes:
        name: What finds what.
        texts: The documents.
        queries: The queries.
        owners: int64 [queries], the index of the document that each query belongs to.
    """

    name: str
    texts: Sequence[str]
    queries: Sequence[str]
    owners: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over queries, and its standard error.

    Queries of one document are alike, so the error is that of the means of documents.
    """

    value: float
    error: float

    @classmethod
    def over(cls, values: NDArray[np.float64], owners: NDArray[np.int64]) -> "Mean":
        """Return the mean of one value for each query."""
        counts = np.bincount(owners)
        means = (np.bincount(owners, values) / np.maximum(counts, 1))[counts > 0]
        return cls(float(values.mean()), float(means.std(ddof=1) / len(means) ** 0.5))


@dataclass(frozen=True, slots=True)
class Found:
    """What a search with some vectors finds.

    Attributes:
        ndcg: float64 [queries], nDCG@10, where only the own document is relevant.
        top: int64 [queries, 10], the nearest documents in any order.
        ranks: float64 [queries, documents], the rank of each.
    """

    ndcg: NDArray[np.float64]
    top: NDArray[np.int64]
    ranks: NDArray[np.float64]

    @classmethod
    def by(
        cls,
        queries: NDArray[np.float32],
        texts: NDArray[np.float32],
        owners: NDArray[np.int64],
    ) -> "Found":
        """Search by cosine with vectors of length 1, float32 [queries or documents, values]."""
        scores = queries @ texts.T
        own = np.take_along_axis(scores, owners[:, None], axis=1)
        places = (scores > own).sum(axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.empty(scores.shape, np.float64)
        np.put_along_axis(ranks, order, np.arange(scores.shape[1], dtype=np.float64)[None], axis=1)
        gains = np.where(places < _CUT, 1 / np.log2(places + 2), 0.0)
        return cls(gains, order[:, :_CUT], ranks)

    def overlap(self, other: "Found") -> NDArray[np.float64]:
        """Return which part of the ten nearest both have, float64 [queries]."""
        pairs = zip(self.top, other.top, strict=True)
        return np.array([len(np.intersect1d(*pair)) / _CUT for pair in pairs])

    def rank_correlation(self, other: "Found") -> NDArray[np.float64]:
        """Return Spearman's correlation of the cosines with all documents, float64 [queries]."""
        count = self.ranks.shape[1]
        squares = ((self.ranks - other.ranks) ** 2).sum(axis=1)
        return np.asarray(1 - 6 * squares / (count * (count**2 - 1.0)))


def sentences() -> KnownItems:
    """Return sentences of the second halves of the abstracts, which look for the first halves."""
    texts: list[str] = []
    queries: list[str] = []
    owners: list[int] = []
    for document in documents().values():
        parts = [part.strip() for part in document.split(" . ") if part.strip()]
        half = -(-len(parts) // 2)
        found = [part for part in parts[half:] if len(part.split()) in _SENTENCE_WORDS]
        if found:
            queries += found
            owners += [len(texts)] * len(found)
            texts.append(" . ".join(parts[:half]))
    return KnownItems("sentences, abstracts", texts, queries, np.array(owners))


def docstrings() -> KnownItems:
    """Return first lines of docstrings of the standard library, which look for the rest."""
    seen: set[str] = set()
    pairs: list[tuple[str, str]] = []
    for docstring in _read_docstrings(Path(ast.__file__).parent):
        first, _, rest = docstring.partition("\n\n")
        summary, description = " ".join(first.split()), " ".join(rest.split())
        words = description.split()
        is_short = len(summary.split()) < _SUMMARY_WORDS_MIN or len(words) < _DESCRIPTION_WORDS[0]
        if not is_short and not seen & {summary, description}:
            seen.update((summary, description))
            pairs.append((summary, " ".join(words[: _DESCRIPTION_WORDS[-1]])))
    summaries, texts = zip(*pairs[::_DOCSTRINGS_EVERY], strict=True)
    return KnownItems("docstrings", texts, summaries, np.arange(len(texts)))


def _read_docstrings(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if _FOREIGN.intersection(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            # Examples of what cannot be read.
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""
