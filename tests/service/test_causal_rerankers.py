"""Rerankers that are causal models, as sentence-transformers saves them and as published."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.client import Client, EmbedGrpcError
from tests.service.conftest import FIXTURES, running_server
from tests.service.test_parity import expected

# The fixtures, and the template that the authors of such models publish.
PUBLISHED = {
    "cross-qwen3-causal": "qwen3-reranker",
    "cross-qwen2-causal": "mxbai-rerank-v2",
    "cross-gemma-causal": "bge-reranker-v2-gemma",
}
NAMES = list(PUBLISHED)
INSTRUCTED = NAMES[:2]
# What sentence-transformers adds to the files of the authors.
ADDED = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json",
         "chat_template.jinja", "1_LogitScore")  # fmt: skip


@pytest.fixture(scope="module")
def published(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server whose models have settings instead of added files."""
    folder = tmp_path_factory.mktemp("published")
    entries = []
    for name, template in PUBLISHED.items():
        copy = shutil.copytree(
            FIXTURES / name, folder / name, ignore=shutil.ignore_patterns(*ADDED)
        )
        entries.append(
            f'[[models]]\nid = "{name}"\nsource = "{copy}"\npair_template = "{template}"\n'
        )
    # A template of the files and tokens of the configuration.
    entries.append(
        f'[[models]]\nid = "own"\nsource = "{FIXTURES / NAMES[0]}"\n'
        'true_token = "no"\nfalse_token = "yes"\n'
    )
    config = folder / "embedgrpc.toml"
    config.write_text("".join(entries))
    with (
        running_server("--config", str(config), cache_dir=cache_dir) as target,
        Client(target) as client,
    ):
        yield client


def _scores(
    client: Client, pairs: list[list[str]], model: str, **options: Any
) -> np.ndarray[Any, Any]:
    answers = [
        client.rerank(query, [document], model=model, **options) for query, document in pairs
    ]
    return np.array([answer.results[0].score for answer in answers])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, "instruction") for name in INSTRUCTED),
        *((name, "query_prompt_text") for name in INSTRUCTED),
        (NAMES[0], "query_prompt_name"),
    ],
)
def test_an_instruction_gives_the_scores_of_the_reference(
    fixture_client: Client, name: str, option: str
) -> None:
    """Over-long pairs included: the document is cut, then the query, and never the template."""
    reference = expected(name)
    asked = reference["outputs"]["instruction"]
    value = asked["instruction"]
    if option == "query_prompt_name":
        value = "drinks"
    scores = _scores(fixture_client, reference["pairs"], name, score_scale="raw", **{option: value})
    assert np.abs(scores - asked["scores"]).max() <= reference["tolerance"]


def test_a_template_without_a_place_refuses_an_instruction(fixture_client: Client) -> None:
    """The model says so before it is asked."""
    assert fixture_client.get_model(NAMES[0]).takes_instruction
    assert not fixture_client.get_model(NAMES[2]).takes_instruction
    asked: list[dict[str, Any]] = [
        {"instruction": "Find drinks"},
        {"query_prompt_text": "Find drinks"},
    ]
    for options in asked:
        with pytest.raises(EmbedGrpcError, match="instruction") as refused:
            fixture_client.rerank("a", ["b"], model=NAMES[2], **options)
        assert refused.value.reason == "UNSUPPORTED"


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_has_one_score_however_it_is_sent(fixture_client: Client, name: str) -> None:
    """Alone, among documents of other lengths and in a stream: the same within 1e-6."""
    query = "which drink is hot"
    documents = [pair[1] for pair in expected(name)["pairs"]]
    alone = _scores(fixture_client, [[query, one] for one in documents], name, score_scale="raw")
    answers = [fixture_client.rerank(query, documents, model=name, score_scale="raw")]
    stream = fixture_client.rerank_stream([(query, documents)], model=name, score_scale="raw")
    answers += [result.ranking for result in stream if result.ranking is not None]
    assert len(answers) == 2
    for answer in answers:
        scores = {one.index: one.score for one in answer.results}
        together = np.array([scores[index] for index in range(len(documents))])
        assert np.abs(together - alone).max() <= 1e-6 * max(1, np.abs(alone).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_published_template_gives_the_published_scores(published: Client, name: str) -> None:
    """The code of the model's authors agrees, with their instruction and with another."""
    reference = expected(name)
    pairs = reference["pairs"]
    for entry, instruction in (("published", None), ("published_instruction", True)):
        asked = reference["outputs"].get(entry)
        if asked is None:
            continue
        options = {"instruction": asked["instruction"]} if instruction else {}
        plain = pairs[: len(asked["scores"])]
        scores = _scores(published, plain, name, score_scale="raw", **options)
        assert np.abs(scores - asked["scores"]).max() <= reference["tolerance"], entry
    # The default scale is the authors': a probability, or the logit itself.
    default = _scores(published, pairs, name)
    assert np.abs(default - reference["outputs"]["default"]["scores"]).max() <= 1e-5


def test_tokens_of_the_configuration_win(published: Client) -> None:
    """Exchanged tokens change the sign of the score."""
    reference = expected(NAMES[0])
    scores = _scores(published, reference["pairs"], "own", score_scale="raw")
    assert np.abs(scores + reference["outputs"]["logits"]["scores"]).max() <= 1e-5


def test_the_tokens_and_the_template_are_part_of_the_fingerprint(
    published: Client, fixture_client: Client
) -> None:
    """Scores by other tokens are not comparable."""
    prints = {
        client.get_model(model).fingerprint
        for client, model in (
            (published, "own"), (published, NAMES[0]), (fixture_client, NAMES[0]),
        )
    }  # fmt: skip
    assert len(prints - {""}) == 3
