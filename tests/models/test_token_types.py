"""A cross-encoder whose export lacks the token types that its weights need."""

from pathlib import Path

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.remote.inputs import plan_inputs
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.sources.weight_file import Format
from tests.models.runner import FIXTURES, copy_fixture, edit_json

NAME = "cross-no-types"


def test_the_weights_beside_it_are_used(tmp_path: Path) -> None:
    """The graph is built from the safetensors, as the reference runs them."""
    files = resolve(str(FIXTURES / NAME))
    identity = identify(files, properties.read(files), cache_dir=tmp_path)
    assert identity.weight_file.format is Format.SAFETENSORS


@pytest.mark.parametrize("model_type", ["bert", "deberta"])
def test_it_is_refused_if_nothing_else_can_be_used(tmp_path: Path, model_type: str) -> None:
    """Without such weights, or an architecture to build, the error says to export it again."""
    left_out = ["model.safetensors"] if model_type == "bert" else []
    folder = copy_fixture(NAME, tmp_path, leave_out=left_out)
    edit_json(folder / "config.json", model_type=model_type)
    files = resolve(str(folder))
    with pytest.raises(ModelError, match="no input 'token_type_ids'"):
        identify(files, properties.read(files), cache_dir=tmp_path)


def test_it_is_refused_if_it_is_set(tmp_path: Path) -> None:
    """A file that the configuration names is not replaced."""
    files = resolve(str(FIXTURES / NAME))
    read = properties.read(files, ModelOverrides(file="onnx/model.onnx"))
    with pytest.raises(ModelError, match="no input 'token_type_ids'"):
        identify(files, read, cache_dir=tmp_path)


@pytest.mark.parametrize("type_vocab_size", [1, 0])
def test_a_model_with_one_type_needs_no_input(tmp_path: Path, type_vocab_size: int) -> None:
    """The export of a model that knows one type only is used."""
    folder = copy_fixture(NAME, tmp_path)
    edit_json(folder / "config.json", type_vocab_size=type_vocab_size)
    files = resolve(str(folder))
    identity = identify(files, properties.read(files), cache_dir=tmp_path)
    assert identity.weight_file.format is Format.ONNX


def test_a_served_graph_without_types_is_refused() -> None:
    """A server's graph that lacks the input cannot give the model's scores either."""
    described = properties.read(resolve(str(FIXTURES / NAME)))
    with pytest.raises(ModelError, match="no input 'token_type_ids'"):
        plan_inputs(["input_ids", "attention_mask"], described, model="m")
    wanted = ["input_ids", "attention_mask", "token_type_ids"]
    assert not plan_inputs(wanted, described, model="m")
