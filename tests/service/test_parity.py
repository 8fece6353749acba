"""The answers of the running service against those of the reference implementation."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.client import Client, InvalidRequestError
from tests.service.conftest import FEW, FIXTURES, FOLDERS, in_turn, running_server


def expected(name: str) -> dict[str, Any]:
    """Return the reference's answers for a folder."""
    answers: dict[str, Any] = json.loads((FIXTURES / name / "expected.json").read_text("utf-8"))
    return answers


DENSE = [name for name in FOLDERS if expected(name)["kind"] in ("dense", "m3")]
CLASSIFY = [name for name in FOLDERS if expected(name)["kind"] == "classify"]
CROSS = [name for name in FOLDERS if expected(name)["kind"] == "cross"]


def test_the_default_model_gives_the_vectors_of_the_reference(client: Client) -> None:
    """Cosine, every number and the token counts of 40 texts agree, in one call and in a stream."""
    reference = expected("all-MiniLM-L6-v2")
    vectors = np.load(FIXTURES / "all-MiniLM-L6-v2" / "expected.npz")["vectors"]
    answer = client.embed(reference["texts"])
    results: list[Any] = list(client.embed_stream(reference["texts"]))
    streamed = np.stack([one.vector for one in results])
    assert answer.token_counts.tolist() == reference["token_counts"]
    assert answer.truncated.tolist() == [
        before > after
        for before, after in zip(
            reference["token_counts_before_truncation"], reference["token_counts"], strict=True
        )
    ]
    for rows in (answer.vectors, streamed):
        assert (rows * vectors).sum(axis=1).min() >= 0.99999
        assert np.abs(rows - vectors).max() <= reference["tolerance"]


def test_one_text_has_one_vector_however_it_is_sent(client: Client) -> None:
    """Alone, among 64, beside a text of 256 tokens and in a stream: the same within 1e-6."""
    text = "Gas turbines push a vehicle forward."
    alone = client.embed([text]).vectors[0]
    among = client.embed([text] * 3 + [f"text number {number}" for number in range(61)]).vectors[0]
    beside = client.embed(["spam " * 400, text]).vectors[1]
    streamed = next(iter(client.embed_stream([text]))).vector
    for vector in (among, beside, streamed):
        assert np.abs(vector - alone).max() <= 1e-6


@pytest.mark.parametrize("name", in_turn(*DENSE))
def test_local_folders_give_the_vectors_of_the_reference(fixture_client: Client, name: str) -> None:
    """Every way of asking that a folder's reference answers has is answered alike."""
    reference = expected(name)
    # Not every reference writes down how it was asked where the entry says it.
    for entry, asked in reference["outputs"].items():
        if entry in ("sparse", "colbert", "hybrid"):
            continue
        answer = fixture_client.embed(
            reference["texts"],
            model=name,
            normalize=asked.get("normalize", False if entry == "normalize_false" else None),
            dimensions=asked.get("dimensions") or 0,
            prompt_name=asked.get("prompt_name"),
        )
        deviation = np.abs(answer.vectors - np.array(asked["vectors"], np.float32)).max()
        assert deviation <= reference["tolerance"], entry
        if "token_ids" in reference:
            counts = asked.get("token_counts") or [len(ids) for ids in reference["token_ids"]]
            assert answer.token_counts.tolist() == counts, entry


def test_a_vocabulary_is_enough(fixture_client: Client) -> None:
    """A BERT model with `vocab.txt` and no `tokenizer.json` has the vectors of the reference."""
    reference = expected("bert-mean")
    answer = fixture_client.embed(reference["texts"], model="vocabulary")
    wanted = np.array(reference["outputs"]["default"]["vectors"], np.float32)
    assert np.abs(answer.vectors - wanted).max() <= reference["tolerance"]


def test_vectors_are_shortened_as_the_files_say(fixture_client: Client) -> None:
    """`truncate_dim` keeps the first values, which are scaled again only on request."""
    reference = expected("bert-mean")
    whole = np.array(reference["outputs"]["default"]["vectors"], np.float32)
    kept = whole[:, :8]
    unit = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    texts = reference["texts"]
    cases: list[tuple[dict[str, Any], Any]] = [
        ({}, kept),
        ({"normalize": False}, kept),
        ({"normalize": True}, unit),
        ({"dimensions": 5}, kept[:, :5]),
    ]
    for options, wanted in cases:
        answer = fixture_client.embed(texts, model="shortened", **options)
        assert np.abs(answer.vectors - wanted).max() <= reference["tolerance"], options
    model = next(one for one in fixture_client.list_models() if one.id == "shortened")
    assert (model.dimensions, model.normalized) == (8, False)
    with pytest.raises(InvalidRequestError, match="the model has 8"):
        fixture_client.embed(texts[:1], model="shortened", dimensions=9)
    scores = fixture_client.rerank(texts[0], [texts[1]], model="shortened").results
    assert scores[0].score == pytest.approx(unit[0] @ unit[1], abs=1e-5)


@pytest.mark.parametrize("name", ["bert-mean", "vocabulary", "xlmr-metaspace"])
def test_blanks_before_words_do_not_count(fixture_client: Client, name: str) -> None:
    """A text of 20,000 blanks and then words has the vector of the words."""
    words = "the river flows to the sea"
    plain, blanks, mixed = fixture_client.embed(
        [words, " " * 20_000 + words, " \t\n " * 5_000 + words], model=name
    ).vectors
    assert np.abs(blanks - plain).max() <= 1e-6
    assert np.abs(mixed - plain).max() <= 1e-6


def test_blanks_before_a_document_do_not_count(fixture_client: Client) -> None:
    """Nor do those before the texts of a pair."""
    documents = ["the sea", " " * 20_000 + "the sea"]
    results = fixture_client.rerank("rivers", documents, model="cross-bert").results
    padded = fixture_client.rerank(" " * 20_000 + "rivers", documents, model="cross-bert").results
    scores = [one.score for one in (*results, *padded)]
    assert max(scores) - min(scores) <= 1e-6


@pytest.mark.parametrize("name", in_turn(*CROSS))
def test_cross_encoders_give_the_scores_of_the_reference(fixture_client: Client, name: str) -> None:
    """Logits, sigmoids and the default scale agree for every pair, over-long ones included."""
    reference = expected(name)
    scales: dict[str, Any] = {"logits": "raw", "sigmoid": "sigmoid", "default": None}
    for entry in scales.keys() & reference["outputs"].keys():
        scores = [
            fixture_client.rerank(query, [document], model=name, score_scale=scales[entry])
            .results[0]
            .score
            for query, document in reference["pairs"]
        ]
        difference = np.abs(np.array(scores) - reference["outputs"][entry]["scores"]).max()
        assert difference <= reference["tolerance"], entry


@pytest.mark.parametrize("name", in_turn(*CLASSIFY))
def test_classifiers_give_the_scores_of_the_reference(fixture_client: Client, name: str) -> None:
    """Texts and pairs have the scores of the library's own pipeline, by every function."""
    reference = expected(name)
    functions: dict[str, Any] = {
        "logits": "raw",
        "softmax": "softmax",
        "sigmoid": "sigmoid",
        "default": None,
    }
    for entry, function in functions.items():
        for form, wanted in reference["outputs"][entry].items():
            answer = fixture_client.classify(
                reference[form], model=name, score_function=function, order="model"
            )
            scores = [[label.score for label in one.labels] for one in answer]
            deviation = np.abs(np.array(scores) - wanted).max()
            assert deviation <= reference["tolerance"], (entry, form)
            labels = [label.label for label in answer[0].labels]
            assert labels == reference["settings"]["labels"]


@pytest.mark.parametrize("name", ["cross-bert", "cross-xlmr"])
def test_documents_come_back_in_the_order_of_the_reference(
    fixture_client: Client, name: str
) -> None:
    """One query with its documents is ranked as the reference ranks it."""
    rank = expected(name)["outputs"]["rank"]
    ranking = fixture_client.rerank(rank["query"], rank["documents"], model=name)
    assert [one.index for one in ranking.results] == rank["order"]


def test_an_embedding_model_ranks_by_cosine(client: Client) -> None:
    """The score of a document is the cosine of its vector with the query's."""
    query, documents = "capital of France", ["Tea is hot.", "Paris is the capital of France."]
    vectors = client.embed([query, *documents]).vectors
    ranking = client.rerank(query, documents, return_documents=True)
    assert [one.document for one in ranking.results] == documents[::-1]
    for one in ranking.results:
        assert one.score == pytest.approx(vectors[0] @ vectors[one.index + 1], abs=1e-6)


@pytest.mark.parametrize(
    ("encoding", "tolerance"), [("float16", 1e-3), ("bfloat16", 4e-3), ("int8", 2e-3)]
)
def test_encodings_keep_the_vector(client: Client, encoding: Any, tolerance: float) -> None:
    """A compact encoding gives back the float32 vector within its own precision."""
    texts = expected("all-MiniLM-L6-v2")["texts"]
    exact = client.embed(texts).vectors
    decoded = client.embed(texts, encoding=encoding).to_float32()
    assert 0 < np.abs(decoded - exact).max() <= tolerance


def test_ubinary_keeps_the_signs(client: Client) -> None:
    """Each bit says whether the number is above zero, most significant bit first."""
    texts = expected("all-MiniLM-L6-v2")["texts"]
    exact = client.embed(texts, dimensions=12).vectors
    packed = client.embed(texts, dimensions=12, encoding="ubinary").vectors.astype(np.uint8)
    assert np.array_equal(np.unpackbits(packed, axis=1, count=12), exact > 0)


def weights_of(vector: Any) -> dict[str, float]:
    """A sparse vector as the reference writes it."""
    return {
        str(index): value
        for index, value in zip(vector.indices.tolist(), vector.values.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("xlmr-bge-m3", "sparse"),
        ("splade-bert", "default"),
        pytest.param("splade-modernbert", "default", marks=pytest.mark.slow),
        pytest.param("splade-gte", "default", marks=pytest.mark.slow),
        pytest.param("splade-look-up", "default", marks=pytest.mark.slow),
        ("splade-idf", "default"),
    ],
)
def test_sparse_vectors_are_those_of_the_reference(
    fixture_client: Client, name: str, entry: str
) -> None:
    """Every term and its weight agree; a weight within the tolerance of zero may be missing."""
    reference = expected(name)
    answer = fixture_client.embed(reference["texts"], model=name, representations=["sparse"])
    for vector, weights in zip(answer.sparse, reference["outputs"][entry]["weights"], strict=True):
        ours = weights_of(vector)
        for term in ours.keys() | weights.keys():
            assert ours.get(term, 0) == pytest.approx(
                weights.get(term, 0), abs=reference["tolerance"]
            )
        assert np.array_equal(vector.indices, np.sort(vector.indices))


@pytest.mark.parametrize("name", in_turn("splade-look-up", "splade-idf"))
def test_looked_up_weights_are_those_of_the_reference(fixture_client: Client, name: str) -> None:
    """With a prompt, cut to the heaviest, alone and in a stream: as the reference does."""
    reference = expected(name)
    texts, outputs = reference["texts"], reference["outputs"]
    plain: Any = {"model": name, "representations": ["sparse"]}
    for entry, options in (
        ("prompt_query", {"prompt_name": "query"}),
        ("prompt_query", {"input_type": "query"}),
        ("heaviest", {"max_sparse_terms": outputs["heaviest"]["terms"]}),
    ):
        answer = fixture_client.embed(texts, **plain, **options)
        for vector, weights in zip(answer.sparse, outputs[entry]["weights"], strict=True):
            assert weights_of(vector) == pytest.approx(weights, abs=reference["tolerance"])
    together = fixture_client.embed(texts, **plain)
    assert together.token_counts.tolist() == reference["token_counts"]
    stream: list[Any] = list(fixture_client.embed_stream(texts, **plain))
    for row, text in enumerate(texts):
        alone = fixture_client.embed([text], **plain).sparse[0]
        assert weights_of(alone) == weights_of(together.sparse[row])
        assert weights_of(stream[row].sparse) == weights_of(alone)


def test_multi_vectors_are_those_of_the_reference(fixture_client: Client) -> None:
    """One vector a token, from the second on, each as the reference gives it."""
    reference = expected("xlmr-bge-m3")
    answer = fixture_client.embed(
        reference["texts"], model="xlmr-bge-m3", representations=["multi_vector"]
    )
    rows = reference["outputs"]["colbert"]["vectors"]
    for vectors, expected_vectors in zip(answer.multi_vectors, rows, strict=True):
        difference = np.abs(vectors.values - np.array(expected_vectors)).max()
        assert difference <= reference["tolerance"]


def test_all_representations_come_in_one_answer(fixture_client: Client) -> None:
    """Asked for together, in a call or a stream, each is what it is when asked for alone."""
    texts = expected("xlmr-bge-m3")["texts"][:4]
    model = "xlmr-bge-m3"
    every: Any = ["dense", "sparse", "multi_vector"]
    together = fixture_client.embed(texts, model=model, representations=every)
    alone = [fixture_client.embed(texts, model=model, representations=[one]) for one in every]
    assert np.abs(together.vectors - alone[0].vectors).max() <= 1e-6
    stream = fixture_client.embed_stream(texts, model=model, representations=every)
    results: list[Any] = list(stream)
    for row, one in enumerate(results):
        assert weights_of(one.sparse) == pytest.approx(weights_of(together.sparse[row]), abs=1e-6)
        assert weights_of(one.sparse) == pytest.approx(weights_of(alone[1].sparse[row]), abs=1e-6)
        for other in (together, alone[2]):
            multi = other.multi_vectors[row]
            assert np.abs(one.multi_vector.values - multi.values).max() <= 1e-6


def test_only_the_heaviest_terms_are_kept(fixture_client: Client) -> None:
    """`max_sparse_terms` keeps that many, the heaviest, by ascending index."""
    text = expected("splade-bert")["texts"][0]
    (every,) = fixture_client.embed([text], model="splade-bert").sparse
    (kept,) = fixture_client.embed([text], model="splade-bert", max_sparse_terms=5).sparse
    heaviest = sorted(weights_of(every).items(), key=lambda term: -term[1])[:5]
    assert weights_of(kept) == dict(heaviest)
    assert np.array_equal(kept.indices, np.sort(kept.indices))


def test_a_hybrid_model_ranks_by_all_its_representations(fixture_client: Client) -> None:
    """A pair's score is the reference's mean of dense, sparse and late interaction."""
    reference = expected("xlmr-bge-m3")
    scores = [
        fixture_client.rerank(query, [document], model="xlmr-bge-m3").results[0].score
        for query, document in reference["pairs"]
    ]
    hybrid = [one["hybrid"] for one in reference["outputs"]["hybrid"]["scores"]]
    assert np.abs(np.array(scores) - hybrid).max() <= reference["tolerance"]


def test_a_model_ranks_as_it_was_set(cache_dir: Path, tmp_path: Path) -> None:
    """Late interaction sums what the reference averages, over the query's tokens but the first."""
    config = tmp_path / "embedgrpc.toml"
    source = FIXTURES / "xlmr-bge-m3"
    config.write_text(
        f'[[models]]\nid = "late"\nsource = "{source}"\nrerank_method = "late_interaction"\n'
        f'[[models]]\nid = "dense"\nsource = "{source}"\nrerank_method = "similarity"\n'
    )
    reference = expected("xlmr-bge-m3")
    with (
        running_server("--config", str(config), cache_dir=cache_dir) as target,
        Client(target) as client,
    ):
        for (query, document), scores in zip(
            reference["pairs"], reference["outputs"]["hybrid"]["scores"], strict=True
        ):
            tokens = int(client.embed([query], model="late").token_counts[0]) - 1
            late = client.rerank(query, [document], model="late").results[0].score
            assert late == pytest.approx(scores["colbert"] * tokens, abs=1e-3)
            dense = client.rerank(query, [document], model="dense").results[0].score
            assert dense == pytest.approx(scores["dense"], abs=1e-4)
        assert client.get_model("late").rerank_method == "late_interaction"


def test_a_prompt_of_a_cross_encoder_goes_before_the_query(cache_dir: Path, tmp_path: Path) -> None:
    """The default prompt is prepended to the query, and other prompts are not."""
    extras = {"default_prompt_name": "web", "prompts": {"web": "find: ", "query": "never: "}}
    for name in ("plain", "prompted", "other"):
        shutil.copytree(FIXTURES / "cross-bert", tmp_path / name)
    write = (tmp_path / "prompted" / "config_sentence_transformers.json").write_text
    write(json.dumps(extras))
    write = (tmp_path / "other" / "config_sentence_transformers.json").write_text
    write(json.dumps(extras | {"default_prompt_name": None}))
    flags = [f"--model={tmp_path / name}" for name in ("plain", "prompted", "other")]
    with running_server(*flags, cache_dir=cache_dir) as target, Client(target) as client:

        def score(query: str, model: str) -> float:
            return client.rerank(query, ["A tall tower."], model=model).results[0].score

        assert score("tower", "prompted") == score("find: tower", "plain")
        assert score("tower", "other") == score("tower", "plain") != score("tower", "prompted")


@pytest.mark.parametrize(
    "names", [FEW, pytest.param(FOLDERS, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_models_are_listed_as_they_are(fixture_client: Client, names: Sequence[str]) -> None:
    """The list has every model, by id, with what its files say."""
    models = {model.id: model for model in fixture_client.list_models()}
    assert list(models) == sorted([*names, "vocabulary", "shortened"])
    for name in set(DENSE).intersection(names):
        settings = expected(name).get("settings")
        if settings is None:
            continue
        assert models[name].dimensions == settings["dimension"]
        assert models[name].max_tokens == settings["max_seq_length"]
        assert models[name].normalized == settings["normalize"]
    for name in set(CROSS).intersection(names):
        assert models[name].dimensions == 0
        assert models[name].rerank_method == "cross_encoder"
    for name in set(CLASSIFY).intersection(names):
        assert models[name].tasks == ("classify",)
        assert list(models[name].labels) == expected(name)["settings"]["labels"]
        assert models[name].score_function == expected(name)["settings"]["score_function"]
    assert models["xlmr-bge-m3"].rerank_method == "hybrid"
    assert models["splade-bert"].rerank_method == "similarity"
    assert len({model.fingerprint for model in models.values()}) == len(models)
