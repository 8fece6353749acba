from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.kinds import Pooling
from embedgrpc.models.remote.inputs import plan_inputs
from embedgrpc.models.remote.outputs import ServedOutput, find_token_outputs, plan_outputs
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES

Outputs = dict[str, tuple[int | None, ...]]
MASK = np.array([[1, 1, 1], [1, 1, 0]], np.int64)


def plan(
    fixture: str, outputs: Outputs, *, ours: bool = False, **overrides: Any
) -> tuple[ModelProperties, dict[str, ServedOutput]]:
    """Return the plan for a fixture on a server with these outputs."""
    files = resolve(str(FIXTURES / fixture))
    forms = find_token_outputs(outputs, ours=ours)
    properties = read(files, ModelOverrides(**overrides), served=forms)
    return properties, dict(plan_outputs(outputs, properties, ours=ours, model="m"))


def test_our_own_outputs_are_used_unchanged() -> None:
    """The outputs of a repository that we wrote need no conversion."""
    outputs: Outputs = {
        "sentence_embedding": (32,),
        "pooled_embedding": (32,),
        "token_weights": (None,),
        "token_embeddings": (None, 32),
        "token_vectors": (None, 32),
    }
    properties, planned = plan("xlmr-bge-m3", outputs, ours=True)
    assert properties.representations == ("dense", "sparse", "multi_vector")
    assert {name: (one.served, one.make) for name, one in planned.items()} == {
        name: (name, None) for name in outputs
    }


def test_heads_that_are_not_served_are_not_offered() -> None:
    """The served outputs decide which forms there are, and not the files of heads."""
    properties, planned = plan("xlmr-bge-m3", {"last_hidden_state": (None, 32)})
    assert properties.representations == ("dense",)
    assert planned.keys() == {"sentence_embedding", "pooled_embedding", "token_vectors"}
    assert (planned["token_vectors"].served, planned["token_vectors"].dims) == (
        "last_hidden_state",
        (None, 32),
    )


def test_exports_of_bge_m3_are_understood() -> None:
    """The names of BGE-M3's exports have the same meaning as in graphs that run here."""
    outputs: Outputs = {
        "dense_vecs": (32,),
        "sparse_vecs": (None, 1),
        "colbert_vecs": (None, None),
    }
    properties, planned = plan("xlmr-bge-m3", outputs)
    assert properties.representations == ("dense", "sparse", "multi_vector")
    weights = planned["token_weights"].make
    assert weights
    raw = np.array([[1, -1, 2], [3, 0, 5]], np.float32)
    np.testing.assert_array_equal(weights(raw[:, :, None], MASK), raw.clip(0))
    vectors = planned["token_embeddings"].make
    assert vectors
    given = np.full((2, 2, 4), 0.5, np.float32)
    aligned = vectors(given, MASK)
    assert aligned.shape == (2, 3, 4)
    np.testing.assert_allclose(aligned[:, 1:], given, atol=1e-6)
    assert not aligned[:, 0].any()
    with pytest.raises(ValueError, match="1 vectors for 3 tokens"):
        vectors(given[:, :1], MASK)


@pytest.mark.parametrize("name", ["last_hidden_state", "token_embeddings"])
def test_token_vectors_are_pooled(name: str) -> None:
    """Token vectors of a server are pooled as the model's files say."""
    properties, planned = plan("bert-mean", {name: (None, None)}, normalize=True)
    hidden = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    pooled = planned["pooled_embedding"].make
    made = planned["sentence_embedding"].make
    assert pooled
    assert made
    assert properties.poolings == (Pooling.MEAN,)
    expected = np.stack([hidden[0].mean(axis=0), hidden[1, :2].mean(axis=0)])
    np.testing.assert_allclose(pooled(hidden, MASK), expected, atol=1e-6)
    lengths = np.linalg.norm(made(hidden, MASK), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_a_pooled_vector_is_scaled_if_the_files_say_so() -> None:
    """A server's vectors are scaled to unit length, which does not change those that have it."""
    _, planned = plan("bert-mean", {"sentence_embedding": (None,)}, normalize=True)
    assert planned.keys() == {"sentence_embedding"}
    make = planned["sentence_embedding"].make
    assert make
    once = make(np.array([[3, 4]], np.float32), MASK[:1])
    np.testing.assert_allclose(once, [[0.6, 0.8]], atol=1e-7)
    np.testing.assert_allclose(make(once, MASK[:1]), once, atol=1e-7)
    _, plain = plan("bert-mean", {"sentence_embedding": (None,)}, normalize=False)
    assert plain["sentence_embedding"].make is None


def test_an_output_can_be_chosen() -> None:
    """The setting `output` chooses a pooled or an unpooled output."""
    outputs: Outputs = {"pooler_output": (None,), "last_hidden_state": (None, None)}
    _, planned = plan("bert-mean", outputs, output="pooler_output")
    assert planned["sentence_embedding"].served == "pooler_output"
    with pytest.raises(ModelError, match="one must be other"):
        plan("bert-mean", outputs, output="other")


@pytest.mark.parametrize("dims", [(1,), (None,), ()])
def test_logits_become_a_column(dims: tuple[int | None, ...]) -> None:
    """A cross-encoder's logits become [pairs, 1], also from [pairs]."""
    _, planned = plan("cross-bert", {"logits": dims})
    make = planned["logits"].make
    assert make
    for shape in ((2, 1), (2,)):
        assert make(np.ones(shape, np.float32), MASK).shape == (2, 1)


@pytest.mark.parametrize(
    ("fixture", "outputs", "ours", "problem"),
    [
        ("bert-mean", {"pooler_output": (32,)}, False, "has the outputs pooler_output; one must"),
        ("bert-mean", {"logits": (1,)}, True, "one must be sentence_embedding"),
        ("bert-mean", {"sentence_embedding": (31,)}, True, "has the shape [31] after the batch"),
        ("bert-mean", {"last_hidden_state": (None, 31)}, False, "has 31 values per token"),
        ("gemma-dense", {"last_hidden_state": (None, None)}, False, "have Dense modules after"),
        ("splade-bert", {"logits": (None, None)}, False, "one must be vocabulary_weights"),
        ("cross-bert", {"logits": (3,)}, False, "has the shape [3] after the batch"),
        ("classify-nli", {"logits": (2,)}, False, "has the shape [2] after the batch"),
        ("classify-nli", {"sentence_embedding": (3,)}, True, "one must be logits"),
        ("cross-bert", {"scores": (1,)}, False, "one must be logits"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    fixture: str, outputs: Outputs, problem: str, *, ours: bool
) -> None:
    """An output that is missing, or whose shape contradicts the files, is an error."""
    with pytest.raises(ModelError) as caught:
        plan(fixture, outputs, ours=ours)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("qwen3", [[0, 1, 2], [0, 1, 1]]), ("xlm-roberta", [[2, 3, 4], [2, 3, 1]])],
)
def test_positions_count_real_tokens(model_type: str, expected: list[list[int]]) -> None:
    """Positions are the same as for an export that runs here."""
    properties = replace(read(resolve(str(FIXTURES / "bert-mean"))), model_type=model_type)
    properties = replace(properties, pad_token_id=1)
    (make,) = plan_inputs(["input_ids", "position_ids"], properties, model="m").values()
    ids = np.where(MASK == 1, 7, 1).astype(np.int64)
    assert make(ids, MASK).tolist() == expected
