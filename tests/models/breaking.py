"""Ways to break a model folder, for tests; each takes the folder."""

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
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from tests.models.runner import edit_json

Break = Callable[[Path], None]


def remove(name: str) -> Break:
    """Deletes a file."""
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str | bytes) -> Break:
    """Writes other content to a file, or makes one."""
    raw = content.encode() if isinstance(content, str) else content

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(raw)

    return apply


def move(name: str, to: str) -> Break:
    """Gives a file another name."""

    def apply(folder: Path) -> None:
        (folder / name).replace(folder / to)

    return apply


def truncate(name: str, *, kept: float = 0.5) -> Break:
    """Keeps the first part of a file."""

    def apply(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * kept)])

    return apply


def replace_bytes(name: str, old: bytes, new: bytes) -> Break:
    """Replaces some bytes of a file, wherever they are."""

    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new))

    return apply


def edit(name: str, **changes: Any) -> Break:
    """Sets keys of a JSON object; those set to None are taken out."""
    return lambda folder: edit_json(folder / name, **changes)


def retype_module(index: int, kind: str) -> Break:
    """Makes a module of `modules.json` one of another type."""

    def apply(folder: Path) -> None:
        path = folder / "modules.json"
        modules = json.loads(path.read_text())
        modules[index]["type"] = f"somewhere.{kind}"
        path.write_text(json.dumps(modules))

    return apply


def repath_module(index: int, place: str, *, kind: str = "Transformer") -> Break:
    """Makes a module of `modules.json` lie elsewhere, and be of another type."""

    def apply(folder: Path) -> None:
        path = folder / "modules.json"
        modules = json.loads(path.read_text())
        modules[index] |= {"path": place, "type": f"somewhere.{kind}"}
        path.write_text(json.dumps(modules))

    return apply


def drop_tensor(name: str, tensor: str) -> Break:
    """Takes a tensor out of a safetensors file."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        del tensors[tensor]
        save_file(tensors, folder / name)

    return apply


def reshape_tensor(name: str, tensor: str, shape: tuple[int, ...]) -> Break:
    """Gives a tensor of a safetensors file another shape."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        tensors[tensor] = np.zeros(shape, np.float32)
        save_file(tensors, folder / name)

    return apply


def both(*breaks: Break) -> Break:
    """One after the other."""

    def apply(folder: Path) -> None:
        for one in breaks:
            one(folder)

    return apply


def edit_graph(change: Callable[[onnx.ModelProto], None]) -> Break:
    """Changes `onnx/model.onnx`; external weights stay where they are."""

    def apply(folder: Path) -> None:
        path = folder / "onnx" / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return apply


def move_external(location: str) -> Break:
    """Makes a graph name another place of its weights."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    return edit_graph(change)


def link_external_outside(folder: Path) -> None:
    """Makes the file of a graph's weights a link out of the folder."""
    path = folder / "onnx" / "model.onnx_data"
    outside = folder.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def add_input(model: onnx.ModelProto) -> None:
    """An input that nobody knows."""
    model.graph.input.append(
        helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3])
    )


def rename_output(model: onnx.ModelProto) -> None:
    """The only output gets a name that says nothing."""
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("Identity", [output.name], ["result"]))
    output.name = "result"


def quantize(model: onnx.ModelProto) -> None:
    """An operator of quantised graphs, whose result nobody uses."""
    names = ["input_ids_scaled", "input_ids_scale", "input_ids_zero"]
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["position"], names))


def malicious_pickle(name: str, target: str) -> Break:
    """A file of weights that runs a command where it is unpickled without care."""

    class Attack:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {target}",)

    def apply(folder: Path) -> None:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Attack(), protocol=2))
        (folder / name).write_bytes(content.getvalue())

    return apply
