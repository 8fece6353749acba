from pathlib import Path

import onnx
import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.onnx_outputs import read_outputs
from tests.models.runner import FIXTURES

_GRAPHS = sorted(FIXTURES.glob("*/onnx/model.onnx"))


@pytest.mark.parametrize("path", _GRAPHS, ids=lambda path: path.parent.parent.name)
def test_outputs_are_those_of_the_graph(path: Path) -> None:
    """Names and shapes are those that the onnx package reads."""
    model = onnx.load(path, load_external_data=False)
    wanted = {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in model.graph.output
    }
    assert read_outputs(path, path.parent) == wanted
    assert wanted


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"no graph", b"\x3a\xff\xff\x03ab"])
def test_broken_files_have_no_outputs(tmp_path: Path, content: bytes) -> None:
    """A broken file has no outputs, and a missing one is an error."""
    (tmp_path / "model.onnx").write_bytes(content)
    assert read_outputs(tmp_path / "model.onnx", tmp_path) == {}
    with pytest.raises(ModelError, match="is missing"):
        read_outputs(tmp_path / "missing.onnx", tmp_path)


def test_a_truncated_graph_has_no_outputs(tmp_path: Path) -> None:
    """A truncated file has no outputs, unless only the bytes after the graph are lost."""
    original = FIXTURES / "xlmr-bge-m3" / "onnx" / "model.onnx"
    whole, outputs = original.read_bytes(), read_outputs(original, original.parent)
    path = tmp_path / "model.onnx"
    for kept in range(len(whole) - 400, len(whole)):
        path.write_bytes(whole[:kept])
        assert read_outputs(path, path.parent) in ({}, outputs)
    path.write_bytes(whole[:-400])
    assert read_outputs(path, path.parent) == {}
