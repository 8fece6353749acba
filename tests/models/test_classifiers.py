"""The graph of a classifier gives the reference's logits, from tensors and from an export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.engine.results.scores import scores_of
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.kinds import Activation, Kind
from embedgrpc.models.sources.source import resolve
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json, expected

NAMES = ["classify-nli", "classify-toxicity", "classify-sentiment", "classify-cross"]
_FUNCTIONS = {
    "raw": Activation.IDENTITY,
    "softmax": Activation.SOFTMAX,
    "sigmoid": Activation.SIGMOID,
}


@pytest.fixture(scope="module", params=[*NAMES, "classify-sentiment without onnx"])
def classifier(
    request: pytest.FixtureRequest, load: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Runner]:
    """What the reference answers, and the model."""
    name, _, plain = request.param.partition(" ")
    folder = FIXTURES / name
    if plain:
        folder = copy_fixture(name, tmp_path_factory.mktemp("plain"), leave_out=["onnx"])
    return expected(name), load(folder)


def _sequences(runner: Runner, reference: dict[str, Any], form: str) -> Any:
    if form == "texts":
        return runner.tokenize(reference["texts"])
    return runner.tokenize_pairs(reference["pairs"])


def test_tokens(classifier: tuple[dict[str, Any], Runner]) -> None:
    """The tokens of texts and pairs are those of the reference, truncated ones included."""
    reference, runner = classifier
    for form, wanted in reference["token_ids"].items():
        sequences = _sequences(runner, reference, form)
        assert [one.input_ids.tolist() for one in sequences] == wanted
        assert max(map(len, wanted)) == runner.properties.max_tokens


def test_logits_and_scores(classifier: tuple[dict[str, Any], Runner]) -> None:
    """The logits, and the scores by each function, are those of the reference."""
    reference, runner = classifier
    default = runner.properties.score_function
    functions = {
        "logits": Activation.IDENTITY,
        "softmax": Activation.SOFTMAX,
        "sigmoid": Activation.SIGMOID,
        "default": default,
    }
    for form in reference["token_ids"]:
        logits = runner.run(_sequences(runner, reference, form), "logits")
        for entry, function in functions.items():
            np.testing.assert_allclose(
                scores_of(logits, function),
                reference["outputs"][entry][form],
                rtol=0,
                atol=reference["tolerance"],
                err_msg=f"{entry} of {form}",
            )


def test_settings(classifier: tuple[dict[str, Any], Runner]) -> None:
    """The kind, the labels and what makes scores of logits are read from the folder."""
    reference, runner = classifier
    properties, settings = runner.properties, reference["settings"]
    assert properties.kind is Kind.CLASSIFIER
    assert list(properties.labels) == settings["labels"]
    assert properties.score_function is _FUNCTIONS[settings["score_function"]]
    assert properties.max_tokens == settings["max_seq_length"]


def _read(tmp_path: Path, name: str = "classify-nli", **changes: Any) -> ModelProperties:
    folder = copy_fixture(name, tmp_path)
    edit_json(folder / "config.json", **changes)
    return read(resolve(str(folder)))


@pytest.mark.parametrize(
    ("changes", "function"),
    [
        ({}, Activation.SOFTMAX),
        ({"problem_type": "single_label_classification"}, Activation.SOFTMAX),
        ({"problem_type": "multi_label_classification"}, Activation.SIGMOID),
        ({"problem_type": "regression"}, Activation.IDENTITY),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Identity"}}, Activation.IDENTITY),
        (
            {
                "problem_type": "multi_label_classification",
                "sbert_ce_default_activation_function": "torch.nn.modules.activation.Softmax",
            },
            Activation.SOFTMAX,
        ),
    ],
)
def test_the_function_of_scores(
    tmp_path: Path, changes: dict[str, Any], function: Activation
) -> None:
    """An activation that is named counts, then the type of the problem and the number of labels."""
    assert _read(tmp_path, **changes).score_function is function


def test_a_cross_encoder_has_a_label_too(tmp_path: Path) -> None:
    """It ranks by its activation, and classifies as the pipeline does."""
    properties = _read(tmp_path, "cross-bert", problem_type="regression")
    assert (properties.kind, properties.labels) == (Kind.CROSS_ENCODER, ("LABEL_0",))
    assert properties.activation is Activation.SIGMOID
    assert properties.score_function is Activation.IDENTITY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "no", "2": "yes"}}, "id2label must be texts by number"),
        ({"id2label": {"0": "no", "1": 7}}, "id2label must be texts by number"),
        ({"id2label": {}}, "id2label must be texts by number"),
        ({"id2label": None, "num_labels": 0}, "num_labels must be"),
        ({"problem_type": "ranking"}, "problem_type must be regression"),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}},
            "activation_fn must be torch's Sigmoid, Identity or Softmax",
        ),
    ],
)
def test_wrong_labels_and_functions(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """They are refused with the file and the key."""
    with pytest.raises(ModelError, match=message) as caught:
        _read(tmp_path, **changes)
    assert "config.json" in str(caught.value)


def test_labels_that_the_weights_do_not_have(load: Any, tmp_path: Path) -> None:
    """The number of labels must be that of the tensors, or of the export's output."""
    labels = {str(index): f"label {index}" for index in range(4)}
    for name, message in (
        ("classify-nli", "classifier.out_proj"),
        ("classify-sentiment", "logits"),
    ):
        folder = copy_fixture(name, tmp_path)
        edit_json(folder / "config.json", id2label=labels)
        with pytest.raises(ModelError, match=message):
            load(folder)


def test_scores_of_extreme_logits() -> None:
    """Neither function overflows."""
    logits = np.array([[-200.0, 0.0, 200.0]], np.float32)
    np.testing.assert_array_equal(scores_of(logits, Activation.SOFTMAX), [[0, 0, 1]])
    np.testing.assert_array_equal(scores_of(logits, Activation.SIGMOID)[:, 1:], [[0.5, 1]])
    assert 0 <= scores_of(logits, Activation.SIGMOID)[0, 0] < 1e-30
