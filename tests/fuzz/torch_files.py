"""Mutated files of torch.save, for the readers of token heads and weights."""

import io
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.torch_file import read_tensors
from tests.fuzz.mutation import NUMBERS, mutate_bytes, some
from tests.fuzz.target import Execute, Target, check_refusal
from tests.models.runner import FIXTURES
from tests.models.tensors.test_torch_file import Built, Call, Global, Pickler, Storage, tensor

_FOLDER = "archive/"
_DESCRIPTION = _FOLDER + "data.pkl"

# Opcodes that are harmful, or that weights do not need.
_HOSTILE = (
    b"b", b"0", b"1", b"2", b"(", b"t", b"\x85", b"\x86", b"\x87", b"}", b"]", b")", b"R", b"Q",
    b"s", b"u", b"a", b"e", b"N", b"\x88", b"\x89", b".", b"\x94", b"\x81", b"\x92", b"\x93",
    b"d", b"l", b"o", b"\x8f", b"\x90", b"\x91", b"\x80\x05", b"\x95" + b"\xff" * 8,
    b"ios\nsystem\n", b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"ctorch\nHalfStorage\n",
    b"ctorch\nBFloat16Storage\n", b"ctorch\nLongStorage\n", b"ctorch\nBoolStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n", b"ccollections\nOrderedDict\n)R", b"X\x01\x00\x00\x00x",
    b"X\xff\xff\xff\x7fx", b"\x8c\xff", b"\x8c\x01a", b"\x8c\x010", b"\x8a\x00", b"\x8a\x01\xff",
    b"\x8a\xff" + b"\x7f" * 255, b"\x8b\xff\xff\xff\x7f", b"G\x7f\xf0" + bytes(6), b"\x98\x00",
    b"\x82\x01", b"C\x02ab", b"\x8e" + b"\xff" * 8, b"I9\n", b"L9L\n", b"S'a'\n", b"F1e9\n",
    b"h\x00h\x00\x86q\x00" * 40, b"\x85" * 2000, b"]q\x00h\x00a", b"}q\x00h\x00s", b"(" * 100,
)  # fmt: skip


# Opcodes that pop a value.
_TAKERS = (b"b", b"b", b"R", b"Q", b"s", b"u", b"a", b"e", b"t", b"0", b"")


@cache
def _contents() -> tuple[Mapping[str, bytes], ...]:
    """Return the members of valid files of each kind that torch writes."""
    found = []
    for name in ("sparse_linear", "colbert_linear"):
        with zipfile.ZipFile(FIXTURES / "xlmr-bge-m3" / f"{name}.pt") as archive:
            members = {
                _FOLDER + member.partition("/")[2]: archive.read(member)
                for member in archive.namelist()
            }
        found.append(members)
    half, double = np.arange(6, dtype="<f2").tobytes(), np.arange(6, dtype="<f8").tobytes()
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), tensor(), True, OrderedDict())
    state = Built(
        OrderedDict(weight=parameter, bias=tensor(shape=(3,), strides=(1,)), tied=tensor()),
        {"_metadata": OrderedDict({"": {"version": 1}, "layer": {"version": 2}})},
    )
    views = {
        "turned": tensor(shape=(3, 2), strides=(1, 3)),
        "cut": tensor(shape=(2,), strides=(2,), offset=1),
        "number": tensor(shape=(), strides=(), offset=4),
        "empty": tensor(shape=(0, 3)),
        "spread": tensor(shape=(2, 3), strides=(0, 1)),
    }
    made: tuple[tuple[Any, bytes], ...] = (
        (state, double),
        ({"epoch": 3, "loss": 0.5, "state_dict": state, "done": True, "best": None}, double),
        (views, double),
        ({"x": tensor("BFloat16Storage")}, half),
        ({"x": tensor("HalfStorage"), "y": tensor("HalfStorage")}, half),
        ({"x": tensor("DoubleStorage"), "y": [1, (2, "3", 1 << 40)]}, double),
        ({"x": tensor("LongStorage"), "y": tensor("BoolStorage", 48)}, double),
    )
    for protocol in (2, 4):
        for content, values in made:
            program = io.BytesIO()
            Pickler(program, protocol=protocol).dump(content)
            found.append(
                {
                    _DESCRIPTION: program.getvalue(),
                    _FOLDER + "byteorder": b"little",
                    _FOLDER + "data/0": values,
                    _FOLDER + "version": b"3\n",
                }
            )
    found += [found[-1] | {_DESCRIPTION: program} for program in _attacks()]
    return tuple(found)


def _attacks() -> Iterator[bytes]:
    """Yield programs that broke a reader once, to try similar ones."""
    storage = Storage("FloatStorage", "0", 6)
    states: tuple[object, ...] = (
        (storage, 0, (1, 100), (0, 1 << 34)),
        {"storage": storage, "shape": (1, 100)},
        ("0", "float32", 1 << 40),
    )
    values: tuple[object, ...] = (tensor(), storage, Global("torch", "FloatStorage"), OrderedDict())
    for state in states:
        for value in values:
            program = io.BytesIO()
            Pickler(program, protocol=2).dump({"x": tensor(), "weight": Built(value, state)})
            yield program.getvalue()
    yield b"\x80\x02})" + b"\x85" * 3000 + b"K\x01s."
    yield b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40)) + b"K\x01s."
    yield b"\x80\x02}q\0X\1\0\0\0ah\0s]q\1h\1ah\0s."


@cache
def _files() -> tuple[bytes, ...]:
    """Return valid files: some by torch, some built here."""
    paths = [
        FIXTURES / "xlmr-bge-m3" / f"{name}.pt" for name in ("sparse_linear", "colbert_linear")
    ]
    return (*(path.read_bytes() for path in paths), *(write_zip(c) for c in _contents()))


@cache
def _programs() -> tuple[tuple[bytes, ...], ...]:
    """Return the pickles as lists of opcodes with arguments."""
    programs = []
    for members in _contents():
        program = members[_DESCRIPTION]
        starts = [place for _, _, place in pickletools.genops(program) if place is not None]
        ends = [*starts[1:], len(program)]
        programs.append(tuple(program[start:end] for start, end in zip(starts, ends, strict=True)))
    return tuple(programs)


@cache
def _words() -> tuple[bytes, ...]:
    return (*_HOSTILE, *{opcode for program in _programs() for opcode in program})


def mutate(random: Random) -> bytes:
    """Return a mutated file; most have another pickle in a valid zip file."""
    chance = random.random()
    if chance < 0.1:
        return mutate_bytes(random, random.choice(_files()), _ZIP_WORDS)
    if chance < 0.2:
        return _mutate_directory(random, random.choice(_files()))
    number = random.randrange(len(_contents()))
    members = dict(_contents()[number])
    if chance < 0.7:
        members[_DESCRIPTION] = b"".join(_mutate_program(random, _programs()[number]))
    elif chance < 0.9:
        members[_DESCRIPTION] = mutate_bytes(random, members[_DESCRIPTION], _words())
    else:
        _mutate_members(random, members)
    return write_zip(members)


def _mutate_program(random: Random, program: tuple[bytes, ...]) -> list[bytes]:
    changed = list(program)
    for _ in range(some(random)):
        place = random.randrange(len(changed) + 1)
        match random.randrange(9):
            case 8:
                # A few opcodes from elsewhere, and one that pops their value.
                source = random.choice(_programs())
                begin = random.randrange(len(source))
                changed[place:place] = source[begin : begin + random.randrange(1, 24)]
                changed.insert(place + random.randrange(25), random.choice(_TAKERS))
            case 0:
                del changed[place : place + random.choice((1, 1, 1, 3, 10))]
            case 1:
                changed[place:place] = changed[
                    place - random.randrange(12) : place
                ] * random.choice((1, 1, 2, 300))
            case 2 if place < len(changed):
                other = random.randrange(len(changed))
                changed[place], changed[other] = changed[other], changed[place]
            case 3 | 4:
                changed.insert(place, random.choice(_words()))
            case 5:
                changed[place : place + 1] = [random.choice(_words())]
            case 6:
                changed[place : place + 1] = [_number(random)]
            case _:
                # Use a memo entry elsewhere, or memoize another value.
                code = random.choice((b"h", b"h", b"q"))
                changed.insert(place, code + bytes([random.randrange(32)]))
    return changed


def _number(random: Random) -> bytes:
    number = random.choice(NUMBERS)
    size = number.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)


def _mutate_members(random: Random, members: dict[str, bytes]) -> None:
    for _ in range(some(random)):
        name = random.choice(list(members))
        match random.randrange(5):
            case 0:
                del members[name]
                if not members:
                    return
            case 1:
                members[random.choice((name + "x", "x/data.pkl", "data.pkl", "\xe9", "", "/"))] = (
                    b""
                )
            case 2:
                members[name] = members[name][: random.randrange(len(members[name]) + 1)]
            case 3:
                members[name] = mutate_bytes(random, members[name])
            case _:
                for number in range(random.choice((10, 300))):
                    members[f"{_FOLDER}data/{number + 1}"] = b"1234"


_ZIP_WORDS = (
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\xff\xff",
    b"\xff" * 4, b"\xff" * 8, b"\x01\x00\x10\x00", b"data.pkl", b"/", b"\0",
)  # fmt: skip


def _mutate_directory(random: Random, content: bytes) -> bytes:
    """Change sizes and offsets in a zip file."""
    changed = bytearray(content)
    signature = random.choice(
        (b"PK\x01\x02", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
    )
    places = []
    place = changed.find(signature)
    while place >= 0:
        places.append(place)
        place = changed.find(signature, place + 1)
    for _ in range(some(random)):
        size = random.choice((2, 2, 4, 8))
        place = random.choice(places or [0]) + random.randrange(4, 56)
        if place + size <= len(changed):
            present = int.from_bytes(changed[place : place + size], "little")
            number = random.choice((*NUMBERS, present + 1, present - 1, 2 * present))
            changed[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(changed)


def write_zip(members: Mapping[str, bytes]) -> bytes:
    """Write a zip file, ten times faster than zipfile."""
    parts: list[bytes] = []
    directory: list[bytes] = []
    place = 0
    for name, content in members.items():
        encoded = name.encode()
        sizes = struct.pack(
            "<3L2H", zlib.crc32(content), len(content), len(content), len(encoded), 0
        )
        start = struct.pack("<5H", 20, 0x800, 0, 0, 0x21)
        head = b"PK\x03\x04" + start + sizes + encoded
        tail = struct.pack("<3H2L", 0, 0, 0, 0, place)
        directory.append(b"PK\x01\x02" + struct.pack("<H", 20) + start + sizes + tail + encoded)
        parts += (head, content)
        place += len(head) + len(content)
    listing = b"".join(directory)
    count = len(members)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, len(listing), place, 0)
    return b"".join((*parts, listing, end))


@contextmanager
def _open(scratch: Path) -> Iterator[Execute]:
    path = scratch / "weights.pt"

    def execute(content: bytes) -> None:
        path.write_bytes(content)
        try:
            tensors = read_tensors(path)
        except ModelError as error:
            check_refusal(error, names=str(path))
            return
        for name, values in tensors.items():
            assert isinstance(name, str)
            assert not values.flags.writeable
            # Read each value: one outside of the memory is a crash, or a sanitizer detects it.
            values.sum(dtype=np.float64 if values.dtype.kind == "f" else np.int64)

    for content in _files():
        execute(content)
    yield execute


TARGET = Target(
    name="torch",
    what="files of torch.save, read as weights",
    mutate=mutate,
    open=_open,
    test_runs=20_000,
)
