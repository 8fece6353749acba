"""Mutated ONNX files of model folders, for the import of exported graphs.

An input has the name of a fixture in a line, and the file's new content.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING
from embedgrpc.models.sources.source import resolve
from tests.fuzz.mutation import NUMBERS, mutate_bytes, some
from tests.fuzz.target import MIB, Execute, Target, check_refusal
from tests.models.runner import FIXTURES

_FOLDERS = ("bert-cls", "gemma-dense", "modernbert-cls", "cross-bert", "xlmr-bge-m3")
_GRAPH_NAME = "onnx/model.onnx"
# The share of inputs that ONNX Runtime runs, which takes ten times as long.
_COMPARED_SHARE = 0.1
_WORDS = (
    b"input_ids", b"attention_mask", b"last_hidden_state", b"sentence_embedding", b"location",
    b"../x", b"model.onnx_data", b"/etc/passwd", b"offset", b"length", b"-1", b"MatMul",
    b"Constant", b"Loop", b"If", b"\xff" * 9 + b"\x01", b"\x80" * 12, b"\x0a\x7f", b"\x12\x80\x01",
)  # fmt: skip
_TEXTS = (
    "", "x", "input_ids", "attention_mask", "last_hidden_state", "sentence_embedding", "location",
    "../../etc/passwd", "model.onnx_data", "/dev/zero", "MatMulInteger", "Loop", "If", "Constant",
    "ai.onnx", "y" * 5000, "\u202e",
)  # fmt: skip
_WHOLE = frozenset({FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64})


@cache
def _models() -> Mapping[str, bytes]:
    return {name: (FIXTURES / name / _GRAPH_NAME).read_bytes() for name in _FOLDERS}


@cache
def _unpooled_models() -> Mapping[str, bytes]:
    """Return the models without pooled outputs, whose check needs ONNX Runtime."""
    found = {}
    for name in _FOLDERS[:3]:
        model = onnx.ModelProto.FromString(_models()[name])
        kept = [value for value in model.graph.output if value.name != SENTENCE_EMBEDDING]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        found[name] = model.SerializeToString()
    return found


def mutate(random: Random) -> bytes:
    """Return a mutated file; most are well-formed but have another meaning."""
    models = _models() if random.random() < _COMPARED_SHARE else _unpooled_models()
    name, content = random.choice(list(models.items()))
    if random.random() < 0.3:
        # The structure is at both ends of the file; most of the rest is weights.
        content = mutate_bytes(random, content, _WORDS)
    else:
        model = onnx.ModelProto.FromString(content)
        for _ in range(some(random)):
            _mutate_message(random, model)
        content = model.SerializeToString()
    return name.encode() + b"\n" + content


def _mutate_message(random: Random, message: Message) -> None:
    """Change a field of a message, or of a message in it."""
    fields = [field for field, _ in message.ListFields()]
    if not fields:
        fields = list(message.DESCRIPTOR.fields)
    if random.random() < 0.1:
        fields = list(message.DESCRIPTOR.fields)
    field = random.choice(fields)
    value: Any = getattr(message, field.name)
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    if _is_repeated(field):
        _mutate_repeated(random, value, field, is_message=is_message)
    elif is_message and random.random() < 0.95:
        _mutate_message(random, value)
    elif is_message or random.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(random, field, value))


def _mutate_repeated(
    random: Random, values: Any, field: FieldDescriptor, *, is_message: bool
) -> None:
    chance = random.random()
    if not values:
        if is_message:
            values.add()
        else:
            values.append(_scalar(random, field, None))
        return
    place = random.randrange(len(values))
    if is_message and chance < 0.7:
        _mutate_message(random, values[place])
    elif chance < 0.8:
        del values[place]
    elif is_message:
        copied = values.add()
        copied.CopyFrom(values[place])
    elif chance < 0.9:
        values.append(values[place])
    else:
        values[place] = _scalar(random, field, values[place])


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _scalar(random: Random, field: FieldDescriptor, present: Any) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return mutate_bytes(random, present or b"", _WORDS)
        return random.choice(_TEXTS)
    if field.enum_type is not None:
        return random.choice(field.enum_type.values).number
    if field.cpp_type not in _WHOLE:
        return random.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    width = 64 if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else 32
    number = random.choice((*NUMBERS, (present or 0) + 1, (present or 0) - 1))
    return (number + (1 << (width - 1))) % (1 << width) - (1 << (width - 1))


@contextmanager
def _open(scratch: Path) -> Iterator[Execute]:
    for name in _FOLDERS:
        shutil.copytree(FIXTURES / name, scratch / name)

    def execute(content: bytes) -> None:
        name, _, changed = content.partition(b"\n")
        files = resolve(str(scratch / name.decode()))
        (files.folder / _GRAPH_NAME).write_bytes(changed)
        with tempfile.TemporaryDirectory(dir=scratch) as cache_dir:
            try:
                prepare(files, read(files), cache_dir=Path(cache_dir))
            except ModelError as error:
                check_refusal(error, names=str(files.folder))

    for name, content in _models().items():
        execute(name.encode() + b"\n" + content)
    yield execute


TARGET = Target(
    name="onnx",
    what="ONNX files of model folders, taken over with a head of ours",
    mutate=mutate,
    open=_open,
    test_runs=120,
    # ONNX Runtime creates threads and arenas to check a graph.
    memory_bytes=512 * MIB,
    cpu_s=2.0,
    validated=True,
)
