"""Functions that break a model folder, for tests."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from tests.models.runner import edit_json

Break = Callable[[Path], None]


def remove(name: str) -> Break:
    """Delete a file."""
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str | bytes) -> Break:
    """Write content to a file."""
    raw = content.encode() if isinstance(content, str) else content

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(raw)

    return apply


def move(name: str, to: str) -> Break:
    """Rename a file."""

    def apply(folder: Path) -> None:
        (folder / name).replace(folder / to)

    return apply


def truncate(name: str, *, kept: float = 0.5) -> Break:
    """Truncate a file."""

    def apply(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * kept)])

    return apply


def replace_bytes(name: str, old: bytes, new: bytes) -> Break:
    """Replace bytes of a file wherever they occur."""

    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new))

    return apply


def edit(name: str, **changes: Any) -> Break:
    """Set keys of a JSON object; None removes a key."""
    return lambda folder: edit_json(folder / name, **changes)


def retype_module(index: int, kind: str) -> Break:
    """Change the type of a module in `modules.json`."""

    def apply(folder: Path) -> None:
        path = folder / "modules.json"
        modules = json.loads(path.read_text())
        modules[index]["type"] = f"sentence_transformers.models.{kind}"
        path.write_text(json.dumps(modules))

    return apply


def repath_module(index: int, place: str, *, kind: str = "Transformer") -> Break:
    """Change the path and the type of a module in `modules.json`."""

    def apply(folder: Path) -> None:
        path = folder / "modules.json"
        modules = json.loads(path.read_text())
        modules[index] |= {"path": place, "type": f"sentence_transformers.models.{kind}"}
        path.write_text(json.dumps(modules))

    return apply


def drop_tensor(name: str, tensor: str) -> Break:
    """Remove a tensor from a safetensors file."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        del tensors[tensor]
        save_file(tensors, folder / name)

    return apply


def reshape_tensor(name: str, tensor: str, shape: tuple[int, ...]) -> Break:
    """Reshape a tensor of a safetensors file."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        tensors[tensor] = np.zeros(shape, np.float32)
        save_file(tensors, folder / name)

    return apply


def both(*breaks: Break) -> Break:
    """Apply several changes in order."""

    def apply(folder: Path) -> None:
        for one in breaks:
            one(folder)

    return apply


def edit_graph(change: Callable[[onnx.ModelProto], None]) -> Break:
    """Change `onnx/model.onnx`, but not its external weights."""

    def apply(folder: Path) -> None:
        path = folder / "onnx" / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return apply


def move_external(location: str) -> Break:
    """Change the location of a graph's external weights."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    return edit_graph(change)


def link_external_outside(folder: Path) -> None:
    """Replace the file of a graph's weights by a link out of the folder."""
    path = folder / "onnx" / "model.onnx_data"
    outside = folder.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def add_input(model: onnx.ModelProto) -> None:
    """Add an unknown input."""
    model.graph.input.append(
        helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3])
    )


def rename_output(model: onnx.ModelProto) -> None:
    """Give the only output an unknown name."""
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("Identity", [output.name], ["result"]))
    output.name = "result"


def quantize(model: onnx.ModelProto) -> None:
    """Add an unused operator of quantised graphs."""
    names = ["input_ids_scaled", "input_ids_scale", "input_ids_zero"]
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["position"], names))


def malicious_pickle(name: str, target: str) -> Break:
    """Make a pickled file of weights that runs a command when loaded by `pickle`."""

    class Attack:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {target}",)

    def apply(folder: Path) -> None:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Attack(), protocol=2))
        (folder / name).write_bytes(content.getvalue())

    return apply


def ignore_mask(model: onnx.ModelProto) -> None:
    """Let a graph take padding for text, as exports of a wrong attention do."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[index] = "no_mask"
    ones = numpy_helper.from_array(np.ones(1, np.int64))
    model.graph.node.insert(
        0, helper.make_node("ConstantOfShape", ["mask_shape"], ["no_mask"], value=ones)
    )
    model.graph.node.insert(0, helper.make_node("Shape", ["input_ids"], ["mask_shape"]))
