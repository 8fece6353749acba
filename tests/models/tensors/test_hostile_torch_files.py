"""Attacks in the form of weights: each is refused quickly, with the file's name."""

import io
import json
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.torch_file import read_tensors
from tests.models.tensors.test_torch_file import Built, Call, Global, Pickler, Storage, save, tensor

# Reads a file in another process, which may die, and prints the result. The kernel kills the
# process after 5 seconds of CPU time.
_CHILD = """
import json, resource, sys
from pathlib import Path
from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.torch_file import read_tensors
resource.setrlimit(resource.RLIMIT_CPU, (
    int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 5, resource.RLIM_INFINITY))
def peak_kib():
    status = Path("/proc/self/status").read_text()
    return int(next(l for l in status.splitlines() if l.startswith("VmHWM")).split()[1])
before = peak_kib()
try:
    names = sorted(read_tensors(Path(sys.argv[1])))
except ModelError as error:
    answer = {"error": str(error)}
else:
    answer = {"names": names}
print(json.dumps(answer | {"grown_bytes": (peak_kib() - before) * 1024}))
"""
_GROWTH_MAX = 64 << 20


def read_in_child(path: Path) -> dict[str, Any]:
    """Read a file in another process; return the names of its tensors or its error."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)], capture_output=True, check=False, timeout=100
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-1000:])
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["grown_bytes"] < path.stat().st_size + _GROWTH_MAX
    return answer


def write_program(path: Path, program: bytes) -> Path:
    """Write a torch file with this pickle and storage 0."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", np.arange(6, dtype="<f4").tobytes())
    return path


def pickled(content: Any) -> bytes:
    """Pickle like torch."""
    program = io.BytesIO()
    Pickler(program, protocol=2).dump(content)
    return program.getvalue()


_STORAGE = Storage("FloatStorage", "0", 6)


@pytest.mark.parametrize(
    "strides", [(0, 1 << 34), (0, 1)], ids=["far outside", "beyond the values"]
)
def test_a_view_cannot_be_changed_after_it_was_checked(
    tmp_path: Path, strides: tuple[int, int]
) -> None:
    """Otherwise the process dies, or reads memory outside of the values as weights."""
    state = (_STORAGE, 0, (1, 100), strides)
    path = save(tmp_path / "x.pt", {"weight": Built(tensor(), state)})
    answer = read_in_child(path)
    assert (
        answer["error"] == f"{path}: data.pkl sets attributes of a value that is not an OrderedDict"
    )


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (_STORAGE, ("0", "float32", 1 << 40)),
        (Global("torch", "FloatStorage"), ("float64",)),
        (Global("torch", "FloatStorage"), (None, {"dtype": "float64"})),
        (Global("collections", "OrderedDict"), {"__setstate__": 1}),
        (Global("torch._utils", "_rebuild_tensor_v2"), {"x": 1}),
        ([1], {"x": 1}),
        ({}, {"x": 1}),
        ((1, 2), {"x": 1}),
        (7, {"x": 1}),
        (Call(Global("collections", "OrderedDict")), [("_metadata", 1)]),
    ],
)
def test_only_a_state_dict_may_have_attributes(
    tmp_path: Path, value: object, state: object
) -> None:
    """Attributes are ignored where torch writes them, and refused elsewhere."""
    path = save(tmp_path / "x.pt", {"weight": tensor(), "x": Built(value, state)})
    with pytest.raises(ModelError, match=r"x\.pt: data\.pkl sets attributes of a value"):
        read_tensors(path)


def test_attributes_of_a_state_dict_are_ignored(tmp_path: Path) -> None:
    """A state dict of torch contains the version of each module."""
    metadata = OrderedDict({"": {"version": 1}, "encoder": {"version": 1}})
    metadata["x"] = {}
    content = Built(OrderedDict(weight=tensor()), {"_metadata": metadata})
    assert read_tensors(save(tmp_path / "x.pt", content)).keys() == {"weight"}


def test_a_deeply_nested_key(tmp_path: Path) -> None:
    """Hashing a tuple that is nested five million deep overflows the stack."""
    program = b"\x80\x02})" + b"\x85" * 5_000_000 + b"K\x01s."
    answer = read_in_child(write_program(tmp_path / "x.pt", program))
    assert "data.pkl nests values more than 32 deep" in answer["error"]


@pytest.mark.parametrize("levels", [30, 40])
def test_a_key_that_is_hashed_for_hours(tmp_path: Path, levels: int) -> None:
    """A tuple that contains the same tuple twice doubles the work of hashing per level."""
    program = b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(levels)) + b"K\x01s."
    answer = read_in_child(write_program(tmp_path / "x.pt", program))
    assert ("data.pkl has a key that is not text" if levels < 32 else "nests") in answer["error"]


@pytest.mark.parametrize(
    "key", [1, 1.5, None, True, (1, 2), _STORAGE, tensor()], ids=lambda key: type(key).__name__
)
def test_keys_are_text(tmp_path: Path, key: object) -> None:
    """A key of another type is refused."""
    keyed = pickled(key).removeprefix(b"\x80\x02").removesuffix(b".")
    for program in (b"}" + keyed + b"K\x01s.", b"}(" + keyed + b"K\x01u."):
        with pytest.raises(ModelError, match=r"data\.pkl has a key that is not text"):
            read_tensors(write_program(tmp_path / "x.pt", b"\x80\x02" + program))


def test_values_that_contain_themselves(tmp_path: Path) -> None:
    """A list cannot contain itself, nor two lists each other."""
    for program in (b"]q\0h\0a.", b"]q\0(h\0e.", b"]q\0]q\1h\0a0h\0h\1a.", b"}q\0X\1\0\0\0ah\0s."):
        with pytest.raises(ModelError, match=r"data\.pkl changes a value that is already part"):
            read_tensors(write_program(tmp_path / "x.pt", b"\x80\x02" + program))


def test_depth_counts_through_the_memo(tmp_path: Path) -> None:
    """The depth limit of 32 also counts for values from the memo."""

    def nested(depth: int) -> bytes:
        return b"\x80\x02]q\0" + b"".join(b"0](h%ceq%c" % (n, n + 1) for n in range(depth - 1))

    with pytest.raises(ModelError, match="must contain a dictionary"):
        read_tensors(write_program(tmp_path / "x.pt", nested(32) + b"."))
    with pytest.raises(ModelError, match=r"data\.pkl nests values more than 32 deep"):
        read_tensors(write_program(tmp_path / "x.pt", nested(33) + b"."))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"N0" * 600_000, "has more than 1048576 opcodes"),
        (b"}" * 300_000, "has more than 262144 values"),
        (b"]" * 300_000, "has more than 262144 values"),
        (b"(" * 400_000, "nests values more than 32 deep"),
        (b"N" + b"".join(b"r" + struct.pack("<I", n) for n in range(300_000)),
         "remembers more than 262144 values"),
        (b"X" + struct.pack("<I", 5000) + b"a" * 5000 + b".",
         "has a text of 5000 bytes; the limit is 4096"),
        (b"X\xff\xff\xff\xffa.", "has a text of 4294967295 bytes; the limit is 4096"),
        (b"c" + b"a" * 8_000_000, "has a global with a name of more than 256 bytes"),
        (b"X\x01\x00\x00\x00\xff.", "has a text that is not UTF-8"),
        (b"\x80\x06N.", "is of pickle protocol 6; protocols 2 to 5 are supported"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else "",
)  # fmt: skip
def test_programs_that_exceed_a_limit(tmp_path: Path, program: bytes, message: str) -> None:
    """Each resource that a pickle may use has a limit."""
    path = write_program(tmp_path / "x.pt", b"\x80\x02" + program)
    assert read_in_child(path)["error"] == f"{path}: data.pkl {message}"


def _write_tensors(path: Path, count: int) -> Path:
    """Write tensors of 32 axes, each with its own value."""
    head = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x000(" + b"K\x01" * 32 + b"tq\x010"
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuJ" + struct.pack("<I", count) + b"tQq\x020}("
    )
    rows = (
        b"\x8c\x08%08dh\0(h\2M" % number + struct.pack("<H", number) + b"h\1h\1tR"
        for number in range(count)
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"".join((head, *rows, b"u.")))
        archive.writestr("x/data/0", bytes(4 * count))
    return path


def test_the_largest_description(tmp_path: Path) -> None:
    """A file at its limits needs little memory; one more tensor is refused."""
    path = _write_tensors(tmp_path / "x.pt", 1 << 14)
    assert len(read_in_child(path)["names"]) == 1 << 14
    path = _write_tensors(tmp_path / "x.pt", (1 << 14) + 1)
    assert read_in_child(path)["error"] == f"{path}: data.pkl has more than 16384 tensors"


@pytest.mark.parametrize("metadata", [{"neg": True}, {"conj": True}])
def test_tensors_that_are_stored_negated(tmp_path: Path, metadata: Any) -> None:
    """Ignoring that a tensor is stored negated would give the wrong signs."""
    call = tensor()
    call.arguments = (*call.arguments, metadata)
    with pytest.raises(ModelError, match=r"tensor that must be changed when it is read"):
        read_tensors(save(tmp_path / "x.pt", {"x": call}))


def test_equal_views_are_made_once(tmp_path: Path) -> None:
    """Tied weights need memory once, also if their type is converted."""
    values = np.arange(6, dtype="<f2")
    tied = {f"x{n}": tensor("HalfStorage") for n in range(50)}
    read = read_tensors(save(tmp_path / "x.pt", tied, values.tobytes()))
    assert len({id(array) for array in read.values()}) == 1
    np.testing.assert_array_equal(read["x49"], values.reshape(2, 3))


def _write_zip(path: Path, *, entries: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled({"x": tensor()}))
        archive.writestr("x/data/0", np.arange(6, dtype="<f4").tobytes())
        for number in range(entries):
            archive.writestr(f"x/{number}", b"")
    return path


def test_a_directory_with_too_many_entries(tmp_path: Path) -> None:
    """Python needs ten times more memory for a member than the file needs bytes."""
    assert read_tensors(_write_zip(tmp_path / "x.pt", entries=1000)).keys() == {"x"}
    answer = read_in_child(_write_zip(tmp_path / "x.pt", entries=60_000))
    assert "its directory has" in answer["error"]
    assert "bytes; the limit is 2097152" in answer["error"]


def _change_directory(path: Path, name: bytes, place: int, value: bytes) -> Path:
    content = bytearray(path.read_bytes())
    entry = content.rindex(name) - 46
    content[entry + place : entry + place + len(value)] = value
    path.write_bytes(content)
    return path


def test_members_that_share_their_bytes(tmp_path: Path) -> None:
    """Overlapping members are refused, and so are two members of the same name."""
    path = _write_zip(tmp_path / "x.pt", entries=3)
    _change_directory(path, b"x/1", 42, struct.pack("<I", 0))
    with pytest.raises(ModelError, match=r"x\.pt: 'x/(1|data\.pkl)' overlaps another member"):
        read_tensors(path)
    path = _write_zip(tmp_path / "x.pt", entries=3)
    _change_directory(path, b"x/1", 46, b"x/2")
    with pytest.raises(ModelError, match=r"x\.pt has two members of the name 'x/2'"):
        read_tensors(path)


def test_members_of_two_sizes(tmp_path: Path) -> None:
    """The two sizes of an uncompressed member must be equal."""
    path = _write_zip(tmp_path / "x.pt", entries=0)
    _change_directory(path, b"x/data/0", 20, struct.pack("<I", 8))
    with pytest.raises(ModelError, match=r"x\.pt: 'x/data/0' is compressed; torch does not"):
        read_tensors(path)


def test_bytes_around_the_archive(tmp_path: Path) -> None:
    """A zip file of torch has no bytes before its first member or after its directory."""
    path = _write_zip(tmp_path / "x.pt", entries=0)
    content = path.read_bytes()
    for changed in (content + b"\0", content[:-2] + b"\1\0x", b"PK\3\4" + content):
        path.write_bytes(changed)
        with pytest.raises(ModelError, match=r"x\.pt is damaged or cut short"):
            read_tensors(path)
