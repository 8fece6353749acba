"""Mutated safetensors files, for the readers of weights and of token heads."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import save

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.token_heads import SPARSE_NAME, find_head
from embedgrpc.models.tensors.weights import TensorFile
from tests.fuzz.mutation import NUMBERS, mutate_bytes, mutate_json
from tests.fuzz.target import Execute, Target, check_refusal
from tests.models.runner import FIXTURES

_SIZE = struct.Struct("<Q")
_HIDDEN_SIZE = 32
_WORDS = (
    b'"F32"', b'"BF16"', b'"F64"', b'"I64"', b'"BOOL"', b'"F8_E4M3"', b'"F4"', b'"weight"',
    b"data_offsets", b"shape", b"dtype", b"__metadata__", b"[0,0]", b"[]", b"0", b"-1", b"1e9",
    b"18446744073709551615", b"9223372036854775808", b"{", b"}", b'"', b" " * 100, b"\0",
)  # fmt: skip


@cache
def _files() -> tuple[bytes, ...]:
    paths = (
        "xlmr-bge-m3/sparse_linear.safetensors",
        "xlmr-bge-m3/colbert_linear.safetensors",
        "gemma-dense/2_Dense/model.safetensors",
        "albert-dense/model.safetensors",
    )
    kinds = ("f2", "f4", "f8", "i8", "i4", "u1", "?")
    mixed = {f"x.{kind}": np.ones((2, 3), dtype=kind) for kind in kinds}
    return (*((FIXTURES / path).read_bytes() for path in paths), save(mixed), save({}))


def _split(content: bytes) -> tuple[bytes, bytes]:
    end = _SIZE.size + _SIZE.unpack_from(content)[0]
    return content[_SIZE.size : end], content[end:]


@cache
def _headers() -> tuple[object, ...]:
    return tuple(json.loads(_split(content)[0]) for content in _files())


def mutate(random: Random) -> bytes:
    """Return a mutated file; most have another header before the same values."""
    content = random.choice(_files())
    header, values = _split(content)
    chance = random.random()
    if chance < 0.1:
        return mutate_bytes(random, content, _WORDS)
    if chance < 0.6:
        header = mutate_json(random, json.loads(header), _headers())
    else:
        header = mutate_bytes(random, header, _WORDS)
    size = len(header)
    if random.random() < 0.1:
        size = random.choice((*NUMBERS, size + 1, size - 1)) % (1 << 64)
    if random.random() < 0.1:
        values = values[: random.randrange(len(values) + 1)] + bytes(random.choice((0, 0, 1, 100)))
    return _SIZE.pack(size) + header + values


@contextmanager
def _open(scratch: Path) -> Iterator[Execute]:
    path = scratch / f"{SPARSE_NAME}.safetensors"

    def execute(content: bytes) -> None:
        path.write_bytes(content)
        try:
            with TensorFile(path) as tensors:
                tensors.check({name: tensors.describe(name)[0] for name in tensors.names})
                for name in tensors.names:
                    values = tensors.read(name)
                    assert values.dtype == np.float32
                    values.sum(dtype=np.float64)
            head = find_head(scratch, SPARSE_NAME, hidden_size=_HIDDEN_SIZE)
            assert head is not None
            head.read()
        except ModelError as error:
            check_refusal(error, names=str(path))

    for content in _files():
        execute(content)
    yield execute


TARGET = Target(
    name="safetensors",
    what="safetensors files, read as weights and as a token head",
    mutate=mutate,
    open=_open,
    test_runs=10_000,
)
