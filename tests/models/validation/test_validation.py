"""A child reads a model's files first; this process reads only what the child has read."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from embedgrpc.models.errors import ModelError, ModelUnavailableError
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.graphs import graph
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.validation import validation
from embedgrpc.models.validation.child_process import ChildCall, ChildGroup, Message, run_child
from embedgrpc.models.validation.limits import ValidationLimits
from embedgrpc.models.validation.validation import FileDigests, Validation, load_validated
from tests.models.breaking import edit_graph
from tests.models.hostile import endless_graph
from tests.models.runner import copy_fixture, edit_json

_LIMITS = ValidationLimits(timeout_s=120, memory_bytes=0)


# Bits of `CapEff` in /proc/self/status with which root ignores file permissions.
_ABOVE_PERMISSIONS = 0b110
_ROOT_OF_TESTS = Path(__file__).parents[3]


def _ran_without_privileges(test: Callable[..., None]) -> bool:
    """Run a test in a process for which permissions hold, if they do not hold for this one.

    Returns:
        Whether that was necessary; the test has passed there.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    if not held & _ABOVE_PERMISSIONS:
        return False
    dropped = "-dac_override,-dac_read_search"
    subprocess.run(
        [
            *("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"),
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", ""),
            f"{__file__}::{test.__name__}",
        ],
        check=True,
        cwd=_ROOT_OF_TESTS,
    )
    return True


class Children:
    """Runs children and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, call: ChildCall, children: ChildGroup) -> Message:
        """Run a child."""
        self.count += 1
        return run_child(call, children)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    """The children that are started."""
    counted = Children()
    monkeypatch.setattr(validation, "run_child", counted.run)
    return counted


def _validation(folder: Path, **changes: Any) -> Validation:
    values: dict[str, Any] = {
        "files": resolve(str(folder)),
        "overrides": ModelOverrides(),
        "cache_dir": folder.parent / "cache",
        "limits": _LIMITS,
    }
    return Validation(**(values | changes))


@pytest.fixture(scope="module")
def noted_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the note and the graph of a fixture; not to be changed."""
    folder = copy_fixture("bert-mean", tmp_path_factory.mktemp("noted"))
    wanted = _validation(folder)
    _load(wanted)
    return wanted.cache_dir


@pytest.fixture
def noted(noted_cache: Path, tmp_path: Path) -> Path:
    """A folder with a model that was validated; the cache is beside it."""
    shutil.copytree(noted_cache, tmp_path / "cache")
    return copy_fixture("bert-mean", tmp_path)


def _load(wanted: Validation) -> graph.Graph:
    def use(validated: FileDigests) -> graph.Graph:
        described = properties.read(wanted.files, wanted.overrides)
        path = described.transformer_folder / "tokenizer.json"
        digest = validated.digest_of(path, wanted.files.folder)
        Tokenizer.load(described, digest=digest)
        return graph.prepare(wanted.files, described, cache_dir=wanted.cache_dir, may_build=False)

    return load_validated(wanted, ChildGroup(), use)


def test_the_second_start_needs_no_child(tmp_path: Path, children: Children) -> None:
    """Graph and note come from the cache, also if the folder was moved."""
    folder = copy_fixture("bert-mean", tmp_path)
    first = _load(_validation(folder))
    assert children.count == 1
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert _load(_validation(Path(moved))) == first
    assert children.count == 1


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EAGAIN, ModelUnavailableError),
        (errno.ENOMEM, ModelUnavailableError),
        (errno.EMFILE, ModelUnavailableError),
        (errno.ENOENT, ModelError),
    ],
)
def test_a_child_that_cannot_start_may_start_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ModelError]
) -> None:
    """A temporary lack of processes, memory or descriptors is an error that a retry may solve."""

    def run(_call: ChildCall, _children: ChildGroup) -> Message:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(validation, "run_child", run)
    with pytest.raises(ModelError, match="no process can be started") as caught:
        _load(_validation(copy_fixture("bert-mean", tmp_path)))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"layer_norm_eps": 1e-6}),
        ("tokenizer_config.json", {"model_input_names": ["input_ids"]}),
        ("config_sentence_transformers.json", {"prompts": {"query": "q: "}}),
        ("1_Pooling/config.json", {"include_prompt": True}),
    ],
)
def test_changed_files_are_validated_again(
    noted: Path, children: Children, name: str, change: dict[str, Any]
) -> None:
    """The note depends on each file that this process parses."""
    _load(_validation(noted))
    assert children.count == 0
    edit_json(noted / name, **change)
    _load(_validation(noted))
    assert children.count == 1


def test_another_configuration_is_validated_again(noted: Path, children: Children) -> None:
    """The note depends on the settings that change the tokenizer."""
    _load(_validation(noted, overrides=ModelOverrides(lowercase=True)))
    _load(_validation(noted, escape_special_tokens=True))
    assert children.count == 2


def test_other_weights_are_validated_again(noted: Path, children: Children) -> None:
    """The note does not depend on the weights, but the graph is missing in the cache."""
    first = _load(_validation(noted))
    tensors = load_file(noted / "model.safetensors")
    save_file({name: values * 2 for name, values in tensors.items()}, noted / "model.safetensors")
    other = _load(_validation(noted))
    assert children.count == 1
    assert other.content_hash != first.content_hash


def test_an_added_file_is_validated(noted: Path, children: Children) -> None:
    """A head that was added after validation is read by a child first."""
    (noted / "sparse_linear.pt").write_bytes(b"PK\3\4")
    with pytest.raises(ModelError, match=r"sparse_linear\.pt"):
        _load(_validation(noted))
    assert children.count == 1


def test_every_parsed_file_is_in_the_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every kind of model, this process parses only files that the note depends on."""
    from embedgrpc.models.files import json_file  # noqa: PLC0415 - its function is replaced

    for fixture in ("gemma-dense", "xlmr-bge-m3", "splade-bert", "cross-bert", "bert-st54"):
        folder = copy_fixture(fixture, tmp_path)
        noted = validation.hash_files(_validation(folder)).digests
        read: set[str] = set()

        def spy(path: Path, root: Path, *, limit_bytes: int, read: set[str] = read) -> bytes:
            read.add(path.relative_to(root).as_posix())
            return path.read_bytes()[:limit_bytes]

        with monkeypatch.context() as patched:
            patched.setattr(json_file, "read_file", spy)
            described = properties.read(resolve(str(folder)))
            Tokenizer.load(described)
        assert read
        assert read <= noted.keys()
        heads = {
            one.path.name for one in (described.sparse_head, described.multi_vector_head) if one
        }
        assert heads <= noted.keys()


def test_a_tokenizer_that_changes_is_refused(tmp_path: Path) -> None:
    """The loaded tokenizer is the validated one, byte for byte."""
    folder = copy_fixture("bert-mean", tmp_path)
    wanted = _validation(folder)

    def use(validated: FileDigests) -> None:
        edit_json(folder / "tokenizer.json", version="1.1")
        described = properties.read(wanted.files)
        digest = validated.digest_of(folder / "tokenizer.json", folder)
        Tokenizer.load(described, digest=digest)

    with pytest.raises(ModelError, match=r"tokenizer\.json changed while"):
        load_validated(wanted, ChildGroup(), use)


@pytest.mark.long
def test_an_endless_graph_is_refused(tmp_path: Path) -> None:
    """The child runs the graph once. The error names the setting, and no graph is cached."""
    folder = copy_fixture("bert-cls", tmp_path)
    edit_graph(endless_graph)(folder)
    wanted = _validation(folder, limits=ValidationLimits(timeout_s=3, memory_bytes=0))
    with pytest.raises(ModelError, match="took longer than 3 s and was killed: increase load"):
        _load(wanted)
    assert all(path.name.endswith("-facts") for path in wanted.cache_dir.iterdir())


def test_validation_has_a_memory_limit(tmp_path: Path) -> None:
    """Files that need more memory than the limit are one clear error."""
    folder = copy_fixture("bert-cls", tmp_path)
    # Each value takes a kilobyte once it is parsed.
    table: dict[str, dict[str, str]] = {str(number): {} for number in range(300_000)}
    edit_json(folder / "config.json", table=table)
    limits = ValidationLimits(timeout_s=120, memory_bytes=64 << 20)
    with pytest.raises(ModelError, match="memory") as caught:
        _load(_validation(folder, limits=limits))
    assert str(folder) in str(caught.value)


def test_the_error_of_the_child_is_raised(tmp_path: Path) -> None:
    """The error is the same as if this process had read the folder."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "config.json", vocab_size=7)
    with pytest.raises(ModelError, match=r"does not fit config\.json") as caught:
        _load(_validation(folder))
    assert str(folder / "model.safetensors") in str(caught.value)


@pytest.mark.long
def test_a_read_only_cache_serves(tmp_path: Path, children: Children) -> None:
    """With a graph but without a note, each start validates the model."""
    if _ran_without_privileges(test_a_read_only_cache_serves):
        return
    folder = copy_fixture("bert-mean", tmp_path)
    wanted = _validation(folder)
    built = _load(wanted)
    shutil.rmtree(wanted.cache_dir / validation.hash_files(wanted).key)
    wanted.cache_dir.chmod(0o500)
    assert _load(wanted) == built
    assert _load(wanted) == built
    assert children.count == 3


@pytest.mark.long
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A read-only cache without the model is an error."""
    if _ran_without_privileges(test_a_cache_that_cannot_be_written):
        return
    folder = copy_fixture("bert-mean", tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    with pytest.raises(ModelError, match="cannot be used"):
        _load(_validation(folder))
