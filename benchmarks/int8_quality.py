"""Measure what int8 changes: similarities of sentences, and the order of a reranker.

uv run python -m benchmarks.int8_quality [--cross-encoder FOLDER]

Similarities: pairs of sentences of the Cranfield abstracts, from almost equal to unrelated, as in
STS-B; the figure is the rank correlation of cosines with int8 and with float32.

Search: thousands of queries that belong to one document each, see `known_items`; the figures are
those of int8 against float32, with their standard errors.

Reranking: the queries whose number is a multiple of 3, each with the documents that the default
model ranks highest. `benchmarks.train_cross_encoder` makes a cross-encoder that has not seen them.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_items import Found, KnownItems, Mean, docstrings, sentences
from benchmarks.retrieval import measure_ndcg, read_judgements
from benchmarks.workloads import documents, queries
from embedgrpc.cli.runners import Item, LocalRunner
from embedgrpc.models.graphs.outputs import LOGITS, SENTENCE_EMBEDDING
from embedgrpc.models.kinds import WeightType
from embedgrpc.server.loading import loading
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.model_settings import DEFAULT_MODEL, ModelSettings
from embedgrpc.server.settings.settings import Settings

_ANCHORS = 400
_SENTENCES = 3000
_WORDS = range(6, 31)
# The neighbours of a sentence that make a pair with it: the nearest is number 0.
_RANKS = (0, 1, 3, 10, 30, 100, 300, 1000, 2500)
_RERANKED = 30
_BATCH = 8
_CUT = 10
_HELD_OUT = 3


def rank_correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return Spearman's correlation of two lists of numbers."""
    ranks = [np.argsort(np.argsort(one, kind="stable")) for one in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def compare_similarities(runners: Sequence[LocalRunner]) -> Iterator[tuple[str, str]]:
    """Compare the cosines of pairs with those of the first runner."""
    texts = [
        sentence.strip()
        for document in documents().values()
        for sentence in document.split(" . ")
        if len(sentence.split()) in _WORDS
    ]
    source = random.Random(1)  # noqa: S311 - no secret
    chosen = source.sample(sorted(set(texts)), _SENTENCES)
    exact, other = (_run(runner, chosen, SENTENCE_EMBEDDING) for runner in runners)
    all_cosines = exact[:_ANCHORS] @ exact.T
    all_cosines[np.arange(_ANCHORS), np.arange(_ANCHORS)] = -2
    nearest = np.argsort(-all_cosines, axis=1)[:, _RANKS]
    anchors = np.repeat(np.arange(_ANCHORS), len(_RANKS))
    cosines = [
        np.einsum("ij,ij->i", vectors[anchors], vectors[nearest.ravel()])
        for vectors in (exact, other)
    ]
    low, high = np.percentile(cosines[0], (5, 95))
    error = np.abs(cosines[0] - cosines[1])
    yield "pairs of sentences", f"{len(anchors):,}, cosines of {low:.2f} to {high:.2f} (5 to 95 %)"
    yield "Spearman of cosines, int8 and float32", f"{rank_correlation(cosines[0], cosines[1]):.5f}"
    yield "difference of a cosine: mean, largest", f"{error.mean():.4f}, {error.max():.4f}"


def compare_search(runners: Sequence[LocalRunner], items: KnownItems) -> Iterator[tuple[str, str]]:
    """Compare what is found with what the first runner finds."""
    exact, other = (
        Found.by(
            _run(runner, items.queries, SENTENCE_EMBEDDING),
            _run(runner, items.texts, SENTENCE_EMBEDDING),
            items.owners,
        )
        for runner in runners
    )
    name, owners = items.name, items.owners
    change = Mean.over(other.ndcg - exact.ndcg, owners)
    overlap = Mean.over(exact.overlap(other), owners)
    rank = Mean.over(exact.rank_correlation(other), owners)
    yield f"{name}: queries, documents", f"{len(items.queries):,}, {len(items.texts):,}"
    yield f"{name}: nDCG@10 with float32", f"{exact.ndcg.mean():.4f}"
    yield f"{name}: its difference with int8", f"{change.value:+.4f} ({change.error:.4f})"
    yield f"{name}: part of the nearest 10 that stays", f"{overlap.value:.4f} ({overlap.error:.4f})"
    yield f"{name}: Spearman of a query's cosines", f"{rank.value:.5f} ({rank.error:.5f})"


def compare_reranking(
    embedder: LocalRunner, runners: Sequence[LocalRunner]
) -> Iterator[tuple[str, str]]:
    """Compare the scores of pairs, and the quality of the order, with those of the first runner."""
    relevant, texts = read_judgements(), documents()
    held_out = {
        name: text
        for name, text in queries().items()
        if int(name) % _HELD_OUT == 0 and relevant[name]
    }
    corpus = _run(embedder, list(texts.values()), SENTENCE_EMBEDDING)
    found = _run(embedder, list(held_out.values()), SENTENCE_EMBEDDING) @ corpus.T
    nearest = np.argsort(-found, axis=1)[:, :_RERANKED]
    names = np.array(list(texts))
    pairs: list[Item] = [
        (query, texts[name])
        for query, row in zip(held_out.values(), nearest, strict=True)
        for name in names[row]
    ]
    scores = [_run(runner, pairs, LOGITS)[:, 0].reshape(nearest.shape) for runner in runners]

    def measure(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        orders = np.argsort(-rows, axis=1, kind="stable")
        return np.array(
            [
                measure_ndcg(names[near[order]][:_CUT].tolist(), relevant[query])
                for query, near, order in zip(held_out, nearest, orders, strict=True)
            ]
        )

    before = measure(np.take_along_axis(found, nearest, axis=1))
    exact, other = (measure(rows) for rows in scores)
    error = (other - exact).std(ddof=1) / len(exact) ** 0.5
    flat = [rows.ravel() for rows in scores]
    same = [rank_correlation(*rows) for rows in zip(*scores, strict=True)]
    yield "pairs of queries and documents", f"{len(pairs):,} of {len(held_out)} queries"
    yield (
        "correlation of logits: Pearson, Spearman",
        (f"{np.corrcoef(flat[0], flat[1])[0, 1]:.5f}, {rank_correlation(flat[0], flat[1]):.5f}"),
    )
    yield "Spearman within a query: mean, least", f"{np.mean(same):.4f}, {np.min(same):.4f}"
    yield "nDCG@10 of the embedding model's order", f"{before.mean():.4f}"
    yield "nDCG@10 with float32, int8", f"{exact.mean():.4f}, {other.mean():.4f}"
    yield "difference and its standard error", f"{(other - exact).mean():+.4f} ({error:.4f})"


def _run(runner: LocalRunner, items: Sequence[Item], output: str) -> NDArray[np.float32]:
    """Run items in batches of similar length; float32 [items, values]."""
    sequences = runner.tokenize(items)
    order = sorted(range(len(items)), key=lambda place: len(sequences[place].input_ids))
    batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    return np.stack(runner.run_batches(sequences, batches)[output])


def _load(
    source: str, weight_type: WeightType, cache_dir: Path, resources: ExitStack
) -> LocalRunner:
    settings = Settings(cache_dir=cache_dir, device="cpu")
    model = ModelSettings(source=source, weight_type=weight_type)
    prepared = loading.prepare_model(ServedModel(model), settings, loading.open_onnx)
    resources.callback(prepared.backend.close)
    tokens = prepared.properties.max_tokens
    return LocalRunner(source, prepared, tokens, settings.max_characters_per_token * tokens)


def main() -> None:
    """Print a table of the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cross-encoder", default="", help="the folder of a cross-encoder")
    cross = parser.parse_args().cross_encoder
    types = (WeightType.FLOAT32, WeightType.INT8)
    with ExitStack() as resources:
        cache_dir = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        embedders = [_load(DEFAULT_MODEL.source, one, cache_dir, resources) for one in types]
        print("| figure | |\n|---|---|")
        for name, figure in compare_similarities(embedders):
            print(f"| {name} | {figure} |", flush=True)
        for items in (sentences(), docstrings()):
            for name, figure in compare_search(embedders, items):
                print(f"| {name} | {figure} |", flush=True)
        if cross:
            encoders = [_load(cross, one, cache_dir, resources) for one in types]
            for name, figure in compare_reranking(embedders[0], encoders):
                print(f"| {name} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
