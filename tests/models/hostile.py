"""Functions that make a model folder hostile, for tests."""

import base64
import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.models.breaking import Break, edit_graph
from tests.models.runner import edit_json

_SECRET = "../../secret"  # noqa: S105 - the name of a file


def pipe(name: str) -> Break:
    """Replace a file by a pipe without a writer."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return apply


def listening_socket(name: str) -> Break:
    """Replace a file by a socket."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        # A relative path, because a socket's path has at most 107 bytes.
        with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)

    return apply


def folder_instead(name: str) -> Break:
    """Replace a file by a folder."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return apply


def link_out(name: str) -> Break:
    """Move a file or a folder out of the model's folder, and link to it."""

    def apply(folder: Path) -> None:
        path = folder / name
        outside = folder.parent / f"outside-{path.name}"
        path.rename(outside)
        path.symlink_to(outside)

    return apply


def link_to(name: str, target: str) -> Break:
    """Replace a file by a link."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return apply


def move_module(index: int, outside: str) -> Break:
    """Move a module's folder out of the model's, and write the new path to `modules.json`.

    Args:
        index: Of the module.
        outside: The new place, relative to the model's folder; `absolute` for its full path.
    """

    def apply(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        path = folder / modules[index]["path"]
        target = folder.parent / "outside"
        if path != folder and path.exists():
            path.rename(target)
        else:
            target.mkdir()
        modules[index]["path"] = str(target) if outside == "absolute" else outside
        (folder / "modules.json").write_text(json.dumps(modules))

    return apply


def modules(count: int) -> Break:
    """Repeat the last module until there are this many."""

    def apply(folder: Path) -> None:
        path = folder / "modules.json"
        entries = json.loads(path.read_text())
        path.write_text(json.dumps(entries + entries[-1:] * (count - len(entries))))

    return apply


def sparse(name: str, size: int) -> Break:
    """Make a large sparse file."""

    def apply(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return apply


def normalizer(*steps: dict[str, Any]) -> Break:
    """Set the normalizer of a tokenizer."""

    def apply(folder: Path) -> None:
        edit_json(
            folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": list(steps)}
        )

    return apply


def replace_step(pattern: str, content: str) -> dict[str, Any]:
    """Return a step that replaces a text."""
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def table_step(replacement: str) -> dict[str, Any]:
    """Return a step that looks up replacements in a table of the model."""
    table = struct.pack("<I", 4) + struct.pack("<I", 0) + replacement.encode() + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def word_length(characters: int) -> Break:
    """Set the longest word in which a tokenizer looks for tokens."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"]["max_input_chars_per_word"] = characters
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return apply


def header(size: int, content: bytes = b"") -> Break:
    """Write a safetensors file whose header declares a size."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", size) + content)
        with path.open("r+b") as file:
            file.truncate(8 + size)

    return apply


def many_tensors(count: int) -> Break:
    """Write a safetensors file with many empty tensors."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    content = json.dumps({f"t{number}": entry for number in range(count)}, separators=(",", ":"))
    return header(len(content), content.encode())


def _external(name: str, kind: int = TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=_SECRET)
    return tensor


def _sparse_tensor() -> onnx.SparseTensorProto:
    indices = helper.make_tensor("indices", TensorProto.INT64, [4], [0, 1, 2, 3])
    return onnx.SparseTensorProto(values=_external("values"), indices=indices, dims=[8])


def _constant(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["secret"], **attributes)


def _subgraph() -> onnx.GraphProto:
    output = helper.make_tensor_value_info("secret", TensorProto.FLOAT, [4])
    return helper.make_graph([_constant(value=_external("a"))], "inner", [], [output])


def _function() -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_function(
        "private", "Leak", [], ["secret"], [_constant(value=_external("a"))], opsets
    )


def _default_function() -> onnx.FunctionProto:
    function = _function()
    del function.node[:]
    function.attribute_proto.append(helper.make_attribute("value", _external("a")))
    return function


def _weights(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(_external("a"))


def _sparse_weights(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.append(_sparse_tensor())


def _training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.CopyFrom(_subgraph())


# The places of tensors in an ONNX file; each names a file outside of the model's folder.
LEAKS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a weight": _weights,
    "a sparse weight": _sparse_weights,
    "a constant": lambda model: model.graph.node.append(_constant(value=_external("a"))),
    "a sparse constant": lambda model: model.graph.node.append(
        _constant(sparse_value=_sparse_tensor())
    ),
    "several tensors": lambda model: model.graph.node.append(
        helper.make_node("Odd", [], [], many=[_external("a"), _external("b")])
    ),
    "several sparse tensors": lambda model: model.graph.node.append(
        helper.make_node("Odd", [], [], many=[_sparse_tensor(), _sparse_tensor()])
    ),
    "a subgraph": lambda model: model.graph.node.append(
        helper.make_node("If", ["condition"], ["made"], then_branch=_subgraph())
    ),
    "several subgraphs": lambda model: model.graph.node.append(
        helper.make_node("Odd", [], [], many=[_subgraph(), _subgraph()])
    ),
    "a function": lambda model: model.functions.append(_function()),
    "what a function's attribute is by default": lambda model: model.functions.append(
        _default_function()
    ),
    "training": _training,
}


def leak(change: Callable[[onnx.ModelProto], None]) -> Break:
    """Make a graph refer to an existing file outside of the model's folder."""

    def apply(folder: Path) -> None:
        (folder.parent / "secret").write_bytes(b"\0" * 16)
        edit_graph(change)(folder)

    return apply


def endless_graph(model: onnx.ModelProto) -> None:
    """Make a graph add the result of an endless loop to its output."""
    (output,) = model.graph.output
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == output.name:
                node.output[index] = "before_loop"
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node("Identity", ["state"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition_in", TensorProto.BOOL, []),
            state,
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, []),
        ],
    )
    constants = {
        "trips": helper.make_tensor("trips", TensorProto.INT64, [], [2**62]),
        "go_on": helper.make_tensor("go_on", TensorProto.BOOL, [], [True]),
        "nothing": helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]),
    }
    model.graph.initializer.extend(constants.values())
    model.graph.node.extend(
        [
            helper.make_node("Loop", list(constants), ["looped"], body=body),
            helper.make_node("Add", ["before_loop", "looped"], [output.name]),
        ]
    )
