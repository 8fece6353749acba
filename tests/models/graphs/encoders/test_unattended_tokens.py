"""Filled-up queries of encoders whose layers see near tokens only."""

import json
from pathlib import Path

import numpy as np
import pytest

from embedgrpc.engine.scheduling.padding import pad
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.graphs.encoders import rotary_encoder
from embedgrpc.models.graphs.outputs import TOKEN_EMBEDDINGS
from embedgrpc.models.kinds import TextRole, Truncation
from tests.models.runner import Runner, copy_fixture, edit_json

# The fixture's layers see 8 tokens on either side.
_LENGTH = 40


def _make_late(target: Path) -> Path:
    """Make a MultiVectorEncoder of a ModernBERT; queries are filled up with unattended tokens."""
    folder = copy_fixture("modernbert-mean", target)
    names = ("base.modules.transformer.Transformer", "base.modules.normalize.Normalize")
    mask = "multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
    places = ((names[0], ""), (mask, "1_MultiVectorMask"), (names[1], "2_Normalize"))
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.{name}"}
        for place, (name, path) in enumerate(places)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path, config in (
        ("1_MultiVectorMask", {"skiplist_words": [], "skiplist_tasks": ["document"]}),
        ("2_Normalize", {"module_input_name": TOKEN_EMBEDDINGS}),
    ):
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(config))
    edit_json(
        folder / "config_sentence_transformers.json",
        model_type="MultiVectorEncoder",
        prompts={"query": "", "document": ""},
        similarity_fn_name="maxsim",
    )
    edit_json(
        folder / "sentence_bert_config.json",
        query_expansion={"strategy": "fixed", "attend": False, "length": _LENGTH},
    )
    return folder


def _run_alone_and_beside_a_long_text(runner: Runner) -> tuple[FloatArray, FloatArray]:
    properties, tokenizer = runner.properties, runner.tokenizer
    [short, long] = tokenizer.encode(["a", "the river " * 60])
    query, document = (
        tokenizer.build_sequence(ids, max_tokens=limit, truncation=Truncation.END, role=role)
        for ids, limit, role in (
            (short, _LENGTH, TextRole.QUERY),
            (long, properties.max_tokens, TextRole.DOCUMENT),
        )
    )
    assert query.unattended > 2 * 8
    assert len(document.input_ids) > 2 * _LENGTH
    alone, beside = (
        runner.backend.run(
            pad(
                sequences,
                pad_token_id=properties.pad_token_id,
                left=False,
                outputs=(TOKEN_EMBEDDINGS,),
            )
        )[TOKEN_EMBEDDINGS][0, :_LENGTH]
        for sequences in ([query], [query, document])
    )
    return alone, beside


def test_a_token_that_sees_nothing_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    """A token far behind the query's words has the same vector beside a long text."""
    runner = Runner.load(_make_late(tmp_path), tmp_path / "cache")
    alone, beside = _run_alone_and_beside_a_long_text(runner)
    np.testing.assert_allclose(beside, alone, rtol=0, atol=1e-6)


def test_its_attention_would_be_the_mean_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the multiplication, the vector depends on the batch: the test above can fail."""
    monkeypatch.setattr(rotary_encoder, "append_sight", lambda *_: "")
    runner = Runner.load(_make_late(tmp_path), tmp_path / "cache")
    alone, beside = _run_alone_and_beside_a_long_text(runner)
    assert np.abs(beside - alone).max() > 1e-3
