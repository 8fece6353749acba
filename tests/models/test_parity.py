from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.models.runner import DEFAULT_MODEL, FIXTURES, Runner, copy_fixture, expected

Load = Callable[[str | Path], Runner]


def _without_onnx(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_fixture(name, tmp_path_factory.mktemp("plain"), leave_out=["onnx"])


@pytest.fixture(
    scope="module",
    params=[
        "bert-mean",
        "bert-cls",
        "bert-cls without onnx",
        "bert-st54",
        "bert-added-tokens",
        "bert-truncation-left",
        "xlmr-metaspace",
        "roberta-mean",
        "distilbert-mean",
        "mpnet-mean",
        "albert-dense",
        "modernbert-cls",
        "modernbert-cls without onnx",
        "modernbert-mean",
        "nomic-mean",
        "gte-cls",
        "gte-new-cls",
        "gemma-dense",
        "gemma-dense without onnx",
        "qwen3-last",
        "qwen3-last without onnx",
    ],
)
def embedding(
    request: pytest.FixtureRequest, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Runner]:
    """An embedding model's fixture and the model."""
    name, _, plain = request.param.partition(" ")
    return name, load(_without_onnx(name, tmp_path_factory) if plain else FIXTURES / name)


@pytest.fixture(
    scope="module",
    params=[
        "cross-bert",
        "cross-bert without onnx",
        "cross-xlmr",
        "cross-xlmr without onnx",
        "cross-distilbert",
        "cross-electra",
        "cross-mpnet",
        "cross-modernbert",
        "cross-gte-new",
        "cross-qwen3-template",
        "cross-qwen3-causal",
        "cross-qwen3-causal without onnx",
        "cross-qwen2-causal",
        "cross-qwen2-causal without onnx",
        "cross-gemma-causal",
        "cross-gemma-causal without onnx",
        "cross-qwen3-template without onnx",
    ],
)
def cross_encoder(
    request: pytest.FixtureRequest, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Runner]:
    """A cross-encoder's fixture and the model."""
    name, _, plain = request.param.partition(" ")
    return name, load(_without_onnx(name, tmp_path_factory) if plain else FIXTURES / name)


def test_embedding_token_ids(embedding: tuple[str, Runner]) -> None:
    """The tokens of a text are those of the reference."""
    name, runner = embedding
    reference = expected(name)
    sequences = runner.tokenize(reference["texts"])
    assert [s.input_ids.tolist() for s in sequences] == reference["token_ids"]


@pytest.mark.parametrize(
    ("entry", "output"),
    [("default", "sentence_embedding"), ("normalize_false", "pooled_embedding")],
)
def test_embedding_vectors(embedding: tuple[str, Runner], entry: str, output: str) -> None:
    """The vector of a text is that of the reference, before and after Normalize."""
    name, runner = embedding
    reference = expected(name)
    if not runner.properties.normalize:
        output = "sentence_embedding"
    vectors = runner.run(runner.tokenize(reference["texts"]), output)
    np.testing.assert_allclose(
        vectors, reference["outputs"][entry]["vectors"], rtol=0, atol=reference["tolerance"]
    )


def test_prompts(embedding: tuple[str, Runner]) -> None:
    """With a prompt in front of the text, the vector is that of the reference."""
    name, runner = embedding
    reference = expected(name)
    entries = {k: v for k, v in reference["outputs"].items() if k.startswith("prompt_")}
    assert set(entries) <= {f"prompt_{prompt}" for prompt in runner.properties.prompts}
    for entry, asked in entries.items():
        prompt = runner.properties.prompts[entry.removeprefix("prompt_")]
        assert prompt == asked["prompt_applied"]
        sequences = runner.tokenize([prompt + text for text in reference["texts"]])
        np.testing.assert_allclose(
            runner.run(sequences, "sentence_embedding"),
            asked["vectors"],
            rtol=0,
            atol=reference["tolerance"],
        )


@pytest.mark.parametrize(
    "param",
    [
        "qwen3-last",
        "qwen3-last without onnx",
        "roberta-mean",
        "mpnet-mean",
        "gemma-dense",
        "gemma-dense without onnx",
    ],
)
def test_padding_changes_nothing(
    load: Load, param: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A text has the same vector alone and padded, on either side."""
    name, _, plain = param.partition(" ")
    runner = load(_without_onnx(name, tmp_path_factory) if plain else FIXTURES / name)
    (short,) = runner.tokenize(["two words"])
    alone = runner.run([short], "sentence_embedding")
    padded = runner.run([short], "sentence_embedding", tokens=runner.properties.max_tokens - 1)
    np.testing.assert_allclose(padded, alone, rtol=0, atol=2e-6)


def test_embedding_settings(embedding: tuple[str, Runner]) -> None:
    """The properties read from the folder are those of the reference."""
    name, runner = embedding
    settings, metadata = expected(name)["settings"], runner.properties
    assert metadata.max_tokens == settings["max_seq_length"]
    assert metadata.dimensions == settings["dimension"]
    poolings = [str(pooling) for pooling in metadata.poolings]
    assert poolings in (settings["pooling"], [settings["pooling"]])
    assert metadata.normalize == settings["normalize"]
    assert metadata.prompts == settings["prompts"]
    assert metadata.similarity == settings["similarity"]


def test_pair_token_ids(cross_encoder: tuple[str, Runner]) -> None:
    """The tokens of a pair are those of the reference, also for truncated pairs."""
    name, runner = cross_encoder
    reference = expected(name)
    sequences = runner.tokenize_pairs(reference["pairs"])
    assert [s.input_ids.tolist() for s in sequences] == reference["token_ids"]
    # The pairs of this one are all short.
    if name != "cross-qwen3-template":
        assert max(map(len, reference["token_ids"])) == runner.properties.max_tokens


def test_pair_logits(cross_encoder: tuple[str, Runner]) -> None:
    """The logit of a pair is that of the reference."""
    name, runner = cross_encoder
    reference = expected(name)
    logits = runner.run(runner.tokenize_pairs(reference["pairs"]), "logits")
    assert logits.shape == (len(reference["pairs"]), 1)
    np.testing.assert_allclose(
        logits[:, 0], reference["outputs"]["logits"]["scores"], rtol=0, atol=reference["tolerance"]
    )


def test_default_model_vectors(load: Load) -> None:
    """The vectors of the real all-MiniLM-L6-v2 are those of the reference."""
    runner = load(DEFAULT_MODEL)
    reference = expected("all-MiniLM-L6-v2")
    sequences = runner.tokenize(reference["texts"])
    assert [len(s.input_ids) for s in sequences] == reference["token_counts"]
    before = [s.token_count_before for s in sequences]
    assert before == reference["token_counts_before_truncation"]
    # In batches of like lengths, which have little padding.
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].input_ids))
    vectors = np.empty((len(sequences), runner.properties.dimensions), np.float32)
    for batch in (order[start : start + 8] for start in range(0, len(order), 8)):
        vectors[batch] = runner.run([sequences[index] for index in batch], "sentence_embedding")
    wanted = np.load(FIXTURES / "all-MiniLM-L6-v2" / "expected.npz")["vectors"]
    np.testing.assert_allclose(vectors, wanted, rtol=0, atol=reference["tolerance"])
    assert (vectors * wanted).sum(axis=1).min() >= 0.99999


def test_a_vector_does_not_depend_on_its_batch(load: Load) -> None:
    """A text has the same vector within 1e-6 alone, among 64 texts and beside a long one."""
    runner = load(DEFAULT_MODEL)
    (text,) = runner.tokenize(["what is an embedding"])
    sequences = runner.tokenize(expected("all-MiniLM-L6-v2")["texts"])
    (long, *_) = (one for one in sequences if len(one.input_ids) == runner.properties.max_tokens)
    others = [one for one in sequences if len(one.input_ids) < 64]
    many = [text, *others, *others][:64]
    assert len(many) == 64
    alone = runner.run([text], "sentence_embedding")[0]
    beside = runner.run([text, long], "sentence_embedding")[0]
    among = runner.run(many, "sentence_embedding")[0]
    np.testing.assert_allclose(beside, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(among, alone, rtol=0, atol=1e-6)
