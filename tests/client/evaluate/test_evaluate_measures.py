import math

import numpy as np
import pytest

from embedgrpc.client.evaluate.best_documents import BestDocuments, IdOrder
from embedgrpc.client.evaluate.measures import Quality, mean_quality, quality_of


def test_figures_are_those_computed_by_hand() -> None:
    """Gains count as they are; what is relevant but not found counts as missed."""
    quality = quality_of(["x", "a", "b", "y"], {"a": 1, "b": 3, "missed": 2})
    gained = 1 / math.log2(3) + 3 / math.log2(4)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert quality == pytest.approx((gained / ideal, 2 / 3, 1 / 2))
    assert quality.ndcg == pytest.approx(0.44750, abs=1e-5)


def test_figures_end_at_their_cuts() -> None:
    """NDCG and MRR see ten documents, Recall a hundred."""
    others = [f"x{number}" for number in range(99)]
    assert quality_of([*others[:10], "a"], {"a": 1}) == Quality(0, 1, 0)
    tenth = quality_of([*others[:9], "a"], {"a": 1})
    assert tenth == pytest.approx((1 / math.log2(11), 1, 1 / 10))
    assert quality_of([*others, "a"], {"a": 1}).recall == 1
    assert quality_of([*others, "x", "a"], {"a": 1}).recall == 0
    # Eleven relevant documents: an ideal ranking of ten has nDCG 1.
    many = {f"r{number}": 1 for number in range(11)}
    assert quality_of(list(many)[:10], many) == pytest.approx((1, 10 / 11, 1))


def test_means_are_over_all_queries() -> None:
    """A query without any hit counts."""
    assert mean_quality([Quality(1, 1, 1), Quality(0, 0.5, 0)]) == Quality(0.5, 0.75, 0.5)


def test_equal_scores_go_by_id_the_larger_first() -> None:
    """As in trec_eval: ids compare as text, whatever the order of the file; -0.0 is 0.0."""
    ids = ["10", "9", "é", "a", "Z"]
    best = BestDocuments(1, 5, IdOrder(ids))
    scores = np.array([[0.0, -0.0, 0.0, 0.0, 1.0]], np.float32)
    best.add(np.arange(5), scores)
    assert [ids[number] for number in best.ranked()[0]] == ["Z", "é", "a", "9", "10"]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_blocks_find_what_sorting_everything_finds(block: int, levels: int) -> None:
    """Whatever comes in which block, the best documents are those of one sort over all."""
    chooser = np.random.default_rng(7)
    ids = [str(number) for number in chooser.permutation(300)]
    scores = chooser.integers(-levels, levels, (4, 300)).astype(np.float32)
    finals = chooser.integers(-levels, levels, (4, 300)).astype(np.float32)
    plain, rescored = (BestDocuments(4, 20, IdOrder(ids)) for _ in range(2))
    numbers = chooser.permutation(300)
    for start in range(0, 300, block):
        part = numbers[start : start + block]
        plain.add(part, scores[:, part])
        rescored.add(part, scores[:, part], finals[:, part])
    for query in range(4):

        def place(number: int, by: object = scores[query]) -> tuple[float, str]:
            return by[number], ids[number]  # type: ignore[index] # an array

        due = sorted(range(300), key=place, reverse=True)[:20]
        assert plain.ranked()[query].tolist() == due
        due.sort(key=lambda number: (finals[query][number], ids[number]), reverse=True)
        assert rescored.ranked()[query].tolist() == due
