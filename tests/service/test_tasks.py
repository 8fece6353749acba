"""A model whose graph computes one of several tasks, chosen by the name of the prompt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.client import Client, EmbedGrpcError
from tests.service.conftest import FIXTURES, running_server

NAME = "task-by-prompt"
TEXTS: list[str] = json.loads((FIXTURES / NAME / "expected.json").read_text("utf-8"))["texts"]


def test_texts_of_both_tasks_share_a_batch(fixture_client: Client) -> None:
    """A query and documents that are embedded at once have the vectors of their own tasks."""
    query, *documents = TEXTS
    (one,) = fixture_client.embed([query], model=NAME, prompt_name="retrieval.query").vectors
    others = fixture_client.embed(documents, model=NAME, prompt_name="retrieval.passage").vectors
    ranking = fixture_client.rerank(query, documents, model=NAME)
    for result in ranking.results:
        assert result.score == pytest.approx(one @ others[result.index], abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"prompt_text": "Represent the query: "}])
def test_a_call_that_names_no_task_is_refused(
    fixture_client: Client, options: dict[str, Any]
) -> None:
    """Without the name of a prompt, the error lists the names."""
    with pytest.raises(EmbedGrpcError, match=r"retrieval\.query") as refused:
        fixture_client.embed(TEXTS, model=NAME, **options)
    assert refused.value.reason == "UNSUPPORTED"


def test_a_task_that_is_set_holds_for_all_texts(cache_dir: Path, tmp_path: Path) -> None:
    """With `task_id`, a call needs no name."""
    config = tmp_path / "embedgrpc.toml"
    config.write_text(f'[[models]]\nid = "m"\nsource = "{FIXTURES / NAME}"\ntask_id = 1\n')
    expected = json.loads((FIXTURES / NAME / "expected.json").read_text("utf-8"))
    wanted = expected["outputs"]["prompt_retrieval.passage"]["vectors"]
    with (
        running_server("--config", str(config), cache_dir=cache_dir) as target,
        Client(target) as client,
    ):
        answer = client.embed(TEXTS, prompt_text="Represent the document: ")
    assert np.abs(answer.vectors - np.array(wanted)).max() <= 1e-4
