from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.models.graphs.stored_type import find_stored_type
from embedgrpc.models.sources.weight_file import find_weight_file
from tests.models.runner import copy_fixture


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float64, "float64"),
        (np.float32, "float32"),
        (np.float16, "float16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.int8, "int8"),
    ],
)
def test_the_type_of_most_values_counts(tmp_path: Path, dtype: Any, expected: str) -> None:
    """The stored type is that of most values, and not that of most tensors."""
    folder = copy_fixture("bert-mean", tmp_path)
    path = folder / "model.safetensors"
    tensors: dict[str, Any] = load_file(path)
    large = max(tensors, key=lambda name: tensors[name].size)
    others = {name: values[:1] for name, values in tensors.items() if name != large}
    assert len(others) > 1
    save_file(others | {large: tensors[large].astype(dtype)}, path)
    assert find_stored_type(find_weight_file(folder, folder, file="")) == expected


def test_the_type_of_an_export(tmp_path: Path) -> None:
    """The weights of an ONNX graph count by their values too."""
    folder = copy_fixture("bert-cls", tmp_path)
    path = folder / "onnx" / "model.onnx"
    assert find_stored_type(find_weight_file(folder, folder, file="")) == "float32"
    model = onnx.load(path)
    many = np.zeros(10**6, np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(many, "unused"))
    onnx.save(model, path)
    assert find_stored_type(find_weight_file(folder, folder, file="")) == "float16"


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    """A file without tensors has no type."""
    folder = copy_fixture("bert-mean", tmp_path)
    save_file({}, folder / "model.safetensors")
    assert find_stored_type(find_weight_file(folder, folder, file="")) == "none"
