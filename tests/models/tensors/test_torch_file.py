import io
import os
import pickle
import pickletools
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from embedgrpc.models.errors import ModelError
from embedgrpc.models.tensors.torch_file import read_tensors
from tests.models.runner import FIXTURES

M3 = FIXTURES / "xlmr-bge-m3"


class Global:
    """Pickles as a global of this name, importable or not."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name


class Call:
    """Pickles as a call of a global."""

    def __init__(self, called: Global, *arguments: Any) -> None:
        self.called = called
        self.arguments = arguments


class Built:
    """Pickles as a value whose attributes are set."""

    def __init__(self, value: Any, state: Any) -> None:
        self.value = value
        self.state = state


class Storage:
    """Pickles as a reference to a storage of the file."""

    def __init__(self, kind: str, key: str, count: int) -> None:
        self.reference = ("storage", Global("torch", kind), key, "cpu", count)


class Pickler(pickle._Pickler):
    """Writes the same as torch, without torch."""

    write: Callable[[bytes], object]

    def persistent_id(self, value: Any) -> Any:
        """Write a reference to a storage."""
        return value.reference if isinstance(value, Storage) else None

    def save(self, value: Any, *arguments: Any, **options: Any) -> None:
        """Write globals by their names."""
        if isinstance(value, Global):
            self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(value.called)
            self.save(value.arguments)
            self.write(b"R")
        elif isinstance(value, Built):
            self.save(value.value)
            self.save(value.state)
            self.write(b"b")
        else:
            super().save(value, *arguments, **options)  # type: ignore[misc]  # only the class in C is declared


def tensor(
    kind: str = "FloatStorage",
    count: int = 6,
    *,
    key: str = "0",
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
) -> Call:
    """Return a tensor that pickles as in torch."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    storage = Storage(kind, key, count)
    return Call(rebuild, storage, offset, shape, strides, False, OrderedDict())


def save(
    path: Path,
    content: Any,
    values: bytes = np.arange(6, dtype="<f4").tobytes(),
    *,
    compression: int = zipfile.ZIP_STORED,
    byteorder: str = "little",
    protocol: int = 2,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a file like torch.save, with one storage or more."""
    pickled = io.BytesIO()
    Pickler(pickled, protocol=protocol).dump(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        for key, held in {"0": values, **(more or {})}.items():
            archive.writestr(f"archive/data/{key}", held)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("name", ["sparse_linear", "colbert_linear"])
def test_a_file_of_torch_equals_safetensors(name: str) -> None:
    """A file that torch wrote is read exactly."""
    ours = read_tensors(M3 / f"{name}.pt")
    theirs = load_file(M3 / f"{name}.safetensors")
    assert ours.keys() == theirs.keys() == {"weight", "bias"}
    for key, values in theirs.items():
        assert ours[key].dtype == np.float32
        np.testing.assert_array_equal(ours[key], values.astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("FloatStorage", "<f4"), ("HalfStorage", "<f2"), ("DoubleStorage", "<f8")],
)
def test_floats_become_float32(tmp_path: Path, kind: str, stored: str) -> None:
    """Every floating-point type is read as float32."""
    values = np.array([0.5, -1.25, 3, 0, 1024, -2], dtype=stored)
    path = save(tmp_path / "x.pt", {"x": tensor(kind)}, values.tobytes())
    read = read_tensors(path)["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.reshape(2, 3).astype(np.float32))


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    """The lower half of each value becomes zeros."""
    values = np.array([0.5, -1.25, 3, 0, 1024, -2], dtype="<f4")
    halves = (values.view("<u4") >> 16).astype("<u2")
    path = save(tmp_path / "x.pt", {"x": tensor("BFloat16Storage")}, halves.tobytes())
    np.testing.assert_array_equal(read_tensors(path)["x"], values.reshape(2, 3))


def test_integers_stay(tmp_path: Path) -> None:
    """Integer types are not converted."""
    values = np.array([1, 2**53 + 1, -3, 0, 5, 6], dtype="<i8")
    path = save(tmp_path / "x.pt", {"x": tensor("LongStorage")}, values.tobytes())
    np.testing.assert_array_equal(read_tensors(path)["x"], values.reshape(2, 3))


@pytest.mark.parametrize(
    ("view", "wanted"),
    [
        ({"shape": (3, 2), "strides": (1, 3)}, [[0, 3], [1, 4], [2, 5]]),
        ({"shape": (2,), "strides": (2,), "offset": 1}, [1, 3]),
        ({"shape": (), "strides": (), "offset": 4}, 4),
        ({"shape": (0, 3), "strides": (3, 1)}, np.empty((0, 3))),
        ({"shape": (2, 3), "strides": (0, 1)}, [[0, 1, 2], [0, 1, 2]]),
        ({"shape": (1, 3), "strides": (1 << 70, 1)}, [[0, 1, 2]]),
        ({"shape": (0, 3), "strides": (1, 1 << 70)}, np.empty((0, 3))),
    ],
)
def test_views_of_a_storage(tmp_path: Path, view: dict[str, Any], wanted: Any) -> None:
    """Transposed, sliced and repeated tensors are read as in torch."""
    read = read_tensors(save(tmp_path / "x.pt", {"x": tensor(**view)}))["x"]
    np.testing.assert_array_equal(read, np.array(wanted, dtype=np.float32))


@pytest.mark.parametrize("protocol", [2, 4])
def test_dictionaries_and_parameters(tmp_path: Path, protocol: int) -> None:
    """Ordered dictionaries, parameters and one outer dictionary are supported."""
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), tensor(), True, OrderedDict())
    inner = OrderedDict(weight=parameter, bias=tensor(shape=(3,), strides=(1,)))
    path = save(tmp_path / "x.pt", {"epoch": 3, "state_dict": inner}, protocol=protocol)
    read = read_tensors(path)
    assert read.keys() == {"weight", "bias"}
    assert read["weight"].shape == (2, 3)


@pytest.mark.parametrize(
    ("called", "arguments"),
    [
        (Global("os", "system"), ("touch {target}",)),
        (Global("posix", "system"), ("touch {target}",)),
        (Global("builtins", "eval"), ("open({target!r}, 'w')",)),
        (Global("builtins", "getattr"), (1, "real")),
        (Global("subprocess", "Popen"), (["touch", "{target}"],)),
        (Global("torch", "load"), ("{target}",)),
        (Global("torch._utils", "_import_dotted_name"), ("os.system",)),
        (Global("collections", "OrderedDict.__reduce__"), ()),
        (Global("collections", "Counter"), ()),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_an_unknown_global_is_refused(
    tmp_path: Path, called: Global, arguments: tuple[Any, ...], protocol: int
) -> None:
    """A global that tensors do not need is neither called nor imported."""
    target = tmp_path / "touched"
    filled = [a.format(target=str(target)) if isinstance(a, str) else a for a in arguments]
    content = {"weight": tensor(), "x": Call(called, *filled)}
    path = save(tmp_path / "x.pt", content, protocol=protocol)
    with pytest.raises(ModelError) as caught:
        read_tensors(path)
    message = f"{path}: global '{called.module}.{called.name}' is not allowed in weights"
    assert str(caught.value) == message
    assert not target.exists()


def test_a_real_pickle_of_a_system_call_is_refused(tmp_path: Path) -> None:
    """A pickle of os.system, as Python's own pickler writes it, is refused."""

    class Attack:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'touched'}",)

    for protocol in (2, 4, 5):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(Attack(), protocol=protocol))
        with pytest.raises(ModelError, match=r"global '(posix|nt)\.system' is not allowed"):
            read_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02(X\x01\x00\x00\x00ai__main__\nx\n.", "pickle opcode INST is not allowed"),
        (b"\x80\x02}r\xff\xff\xff\xff.", "must contain a dictionary of tensors"),
        (b"\x80\x02\x82\x01.", "pickle opcode EXT1 is not allowed"),
        (b"\x80\x02}", "data.pkl cannot be read"),
        (b"", "data.pkl cannot be read"),
        (b"\x80\x02}}}R.", "data.pkl lacks a tuple"),
        (b"\x80\x02N.", "must contain a dictionary of tensors"),
        (b"\x80\x02}.", "must contain a dictionary of tensors"),
    ],
)
def test_broken_programs(tmp_path: Path, program: bytes, message: str) -> None:
    """The error for a broken or unusual pickle is one line."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(ModelError) as caught:
        read_tensors(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": tensor(count=7)}, r"data/0 has 24 bytes, not 28"),
        ({"x": tensor(offset=1)}, r"tensor 'x' ends at value 6 of data/0, which has 6"),
        ({"x": tensor(offset=-1)}, r"sizes that are not whole numbers of at least 0"),
        ({"x": tensor(offset=True)}, r"sizes that are not whole numbers of at least 0"),
        ({"x": tensor(strides=(4, 1))}, r"tensor 'x' ends at value 6 of data/0, which has 6"),
        ({"x": tensor(strides=(1 << 2000, 1))}, r"of data/0, which has 6"),
        ({"x": tensor(offset=1 << 63, strides=(0, 0))}, r"of data/0, which has 6"),
        ({"x": tensor(strides=(-3, 1))}, r"sizes that are not whole numbers of at least 0"),
        ({"x": tensor(shape=(2, 3, 1))}, r"has a tensor of 3 axes and 2 strides"),
        ({"x": tensor(shape=(1 << 70, 0))}, r"tensor 'x' has axes that are too long"),
        ({"x": tensor(shape=(1,) * 70, strides=(1,) * 70)}, r"of 70 axes and 70 strides"),
        ({"x": tensor(key="1")}, r"does not contain data/1"),
        ({"x": tensor(key="x" * 65)}, r"key has 65 characters; the limit is 64"),
        ({"x": tensor(count=-1)}, r"has a reference to something other than a storage"),
        ({"x": tensor(count=1 << 2000)}, r"data/0 has 24 bytes, not \d+"),
        ({"x": tensor("QInt8Storage")}, r"global 'torch\.QInt8Storage' is not allowed"),
        (
            {"x": tensor(shape=(1 << 30, 6), strides=(0, 1))},
            "more values than the file has bytes",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_file(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    """A view must stay inside its storage, and need no more memory than the file has bytes."""
    with pytest.raises(ModelError, match=message):
        read_tensors(save(tmp_path / "x.pt", content))


def test_files_of_another_format(tmp_path: Path) -> None:
    """The error for another format or byte order says what to do."""
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    with pytest.raises(ModelError, match=r"x\.pt is not in torch's zip format: save it again"):
        read_tensors(path)
    with pytest.raises(ModelError, match="byteorder must be little"):
        read_tensors(save(path, {"x": tensor()}, byteorder="big"))
    with pytest.raises(ModelError, match="is compressed; torch does not"):
        read_tensors(save(path, {"x": tensor()}, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ModelError, match=r"is a zip file, but not from torch: it has 0 data\.pkl"):
        read_tensors(path)


@pytest.mark.parametrize("kept", [3, 100, 1000, 1900])
def test_a_file_that_is_cut_short(tmp_path: Path, kept: int) -> None:
    """The error names the file, however little is missing."""
    path = tmp_path / "sparse_linear.pt"
    path.write_bytes((M3 / "sparse_linear.pt").read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"sparse_linear\.pt is (damaged|not in torch's zip)"):
        read_tensors(path)


def test_every_changed_byte_is_harmless(tmp_path: Path) -> None:
    """A damaged file is read or refused; there is no other error."""
    whole = (M3 / "sparse_linear.pt").read_bytes()
    path = tmp_path / "x.pt"
    messages = []
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_tensors(path)
        except ModelError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not [message for message in messages if "\n" in message or str(path) not in message]


def test_a_file_that_claims_more_than_it_has(tmp_path: Path) -> None:
    """Overlapping members must not fill the memory."""
    path = save(tmp_path / "x.pt", {"x": tensor()})
    content = bytearray(path.read_bytes())
    # The sizes of `data/0` in the central directory, compressed and not.
    entry = content.rindex(b"archive/data/0") - 46
    content[entry + 20 : entry + 28] = (1 << 30).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(ModelError, match="claim more bytes than"):
        read_tensors(path)


def test_the_files_of_these_tests_resemble_real_ones(tmp_path: Path) -> None:
    """The files of these tests use the same globals as a real file."""
    shutil.copy(M3 / "sparse_linear.pt", tmp_path)

    def names(path: Path) -> set[str]:
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
            program = archive.read(name)
        return {str(arg) for op, arg, _ in pickletools.genops(program) if op.name == "GLOBAL"}

    made = names(save(tmp_path / "x.pt", OrderedDict(x=tensor())))
    assert made == names(tmp_path / "sparse_linear.pt")
