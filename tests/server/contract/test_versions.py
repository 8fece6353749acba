"""The contract of today is the released one, and additions."""

import subprocess
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.message import Message

from embedgrpc.server.contract.limits import CONTRACT_VERSION

ROOT = Path(__file__).parents[3]


def _files(content: bytes) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Return the files of the contract, by name, without what compilers add differently."""
    found = descriptor_pb2.FileDescriptorSet.FromString(content)
    files = {file.name: file for file in found.file if file.name.startswith("embedgrpc/")}
    for file in files.values():
        messages = list(file.message_type)
        while messages:
            message = messages.pop()
            messages += message.nested_type
            for field in message.field:
                field.ClearField("json_name")
    return files


def _check_kept(released: Message, today: Message) -> None:
    """Check that a descriptor has all that it had, in the same form."""
    for field, value in released.ListFields():
        kept = getattr(today, field.name)
        if not field.is_repeated and field.message_type is not None:
            _check_kept(value, kept)
        elif not field.is_repeated:
            assert kept == value, (released, field.name)
        elif field.message_type is None:
            assert set(value) <= set(kept), (released, field.name)
        else:
            by_name = {one.name: one for one in kept}
            for one in value:
                assert one.name in by_name, one
                _check_kept(one, by_name[one.name])


def test_the_released_contract_is_part_of_that_of_today(tmp_path: Path) -> None:
    """What clients depend on is what is served, and additions; see `poe release-contract`."""
    made = tmp_path / "today.binpb"
    protos = sorted(map(str, (ROOT / "protos/embedgrpc/v1").glob("*.proto")))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'protos'}",
         f"--descriptor_set_out={made}", *protos],
        check=True,
    )  # fmt: skip
    today = _files(made.read_bytes())
    assert len(today) == len(protos)
    for name, released in _files((ROOT / "protos/released.binpb").read_bytes()).items():
        _check_kept(released, today[name])


def test_the_contract_version_is_that_of_the_package() -> None:
    """The number before the point is that of `embedgrpc.v1`."""
    major, minor = CONTRACT_VERSION.split(".")
    assert (major, minor.isdecimal()) == ("1", True)
    assert {path.name for path in (ROOT / "protos/embedgrpc").iterdir()} == {f"v{major}"}
