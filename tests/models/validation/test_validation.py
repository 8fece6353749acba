"""A child reads a model's files first; this process reads again only what the child has read."""

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
from embedgrpc.models.validation.child_process import ChildGroup, Message, Work, run_child
from embedgrpc.models.validation.limits import ValidationLimits
from embedgrpc.models.validation.validation import FileDigests, Validation, load_validated
from tests.models.breaking import edit_graph
from tests.models.hostile import endless_graph
from tests.models.runner import copy_fixture, edit_json

_LIMITS = ValidationLimits(timeout_s=120, memory_bytes=0)


# Bits of `CapEff` in /proc/self/status: those by which root writes and reads what it may not.
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
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            f"{__file__}::{test.__name__}",
        ],
        check=True,
        cwd=_ROOT_OF_TESTS,
    )
    return True


class Children:
    """Runs children, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, work: Work, children: ChildGroup) -> Message:
        """Runs a child as the product does."""
        self.count += 1
        return run_child(work, children)


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


def _load(asked: Validation) -> graph.Graph:
    def use(validated: FileDigests) -> graph.Graph:
        described = properties.read(asked.files, asked.overrides)
        path = described.transformer_folder / "tokenizer.json"
        digest = validated.digest_of(path, asked.files.folder)
        Tokenizer.load(asked.files, described, digest=digest)
        return graph.prepare(asked.files, described, cache_dir=asked.cache_dir, may_build=False)

    return load_validated(asked, ChildGroup(), use)


def test_what_was_read_once_needs_no_child(tmp_path: Path, children: Children) -> None:
    """The second start takes graph and note from the cache, wherever the folder lies by then."""
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
def test_a_machine_without_room_for_a_child_may_have_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ModelError]
) -> None:
    """A lack that passes is told apart from one that lasts, so that the model is tried again."""

    def run(_work: Work, _leash: ChildGroup) -> Message:
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
def test_other_files_are_read_by_a_child(
    tmp_path: Path, children: Children, name: str, change: dict[str, Any]
) -> None:
    """Each file that is parsed here belongs to what was read."""
    folder = copy_fixture("bert-mean", tmp_path)
    _load(_validation(folder))
    edit_json(folder / name, **change)
    _load(_validation(folder))
    assert children.count == 2


def test_another_configuration_is_read_by_a_child(tmp_path: Path, children: Children) -> None:
    """What the configuration says changes what a tokenizer does."""
    folder = copy_fixture("bert-mean", tmp_path)
    _load(_validation(folder))
    _load(_validation(folder, overrides=ModelOverrides(lowercase=True)))
    _load(_validation(folder, escape_special_tokens=True))
    assert children.count == 3


def test_other_weights_are_read_by_a_child(tmp_path: Path, children: Children) -> None:
    """The note is about what describes the model; the graph is found by its weights."""
    folder = copy_fixture("bert-mean", tmp_path)
    first = _load(_validation(folder))
    tensors = load_file(folder / "model.safetensors")
    save_file({name: values * 2 for name, values in tensors.items()}, folder / "model.safetensors")
    other = _load(_validation(folder))
    assert children.count == 2
    assert other.content_hash != first.content_hash


def test_a_file_that_was_added_is_read_by_a_child(tmp_path: Path, children: Children) -> None:
    """A head or settings that were not there when the child read are not read here first."""
    folder = copy_fixture("bert-mean", tmp_path)
    _load(_validation(folder))
    (folder / "sparse_linear.pt").write_bytes(b"PK\3\4")
    with pytest.raises(ModelError, match=r"sparse_linear\.pt"):
        _load(_validation(folder))
    assert children.count == 2


def test_what_is_parsed_here_is_what_was_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is parsed here that is not part of the note, for any kind of model."""
    from embedgrpc.models.files import json_file  # noqa: PLC0415 - its function is replaced

    for fixture in ("gemma-dense", "xlmr-bge-m3", "splade-bert", "cross-bert", "bert-st54"):
        folder = copy_fixture(fixture, tmp_path)
        noted = validation.describe(_validation(folder)).digests
        read: set[str] = set()

        def spy(path: Path, root: Path, *, limit_bytes: int, read: set[str] = read) -> bytes:
            read.add(path.relative_to(root).as_posix())
            return path.read_bytes()[:limit_bytes]

        with monkeypatch.context() as patched:
            patched.setattr(json_file, "read_file", spy)
            described = properties.read(resolve(str(folder)))
            Tokenizer.load(resolve(str(folder)), described)
        assert read
        assert read <= noted.keys()
        heads = {
            one.path.name for one in (described.sparse_head, described.multi_vector_head) if one
        }
        assert heads <= noted.keys()


def test_a_tokenizer_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    """The tokenizer that serves is the one that was tried, byte for byte."""
    folder = copy_fixture("bert-mean", tmp_path)
    asked = _validation(folder)

    def use(validated: FileDigests) -> None:
        edit_json(folder / "tokenizer.json", version="1.1")
        described = properties.read(asked.files)
        digest = validated.digest_of(folder / "tokenizer.json", folder)
        Tokenizer.load(asked.files, described, digest=digest)

    with pytest.raises(ModelError, match=r"tokenizer\.json was changed while"):
        load_validated(asked, ChildGroup(), use)


def test_a_graph_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    """A graph is run once in the child; the message says what to set, and no graph is kept."""
    folder = copy_fixture("bert-cls", tmp_path)
    edit_graph(endless_graph)(folder)
    asked = _validation(folder, limits=ValidationLimits(timeout_s=3, memory_bytes=0))
    with pytest.raises(ModelError, match="took longer than 3 s, and was ended: set load_timeout_s"):
        _load(asked)
    assert all(path.name.endswith("-external") for path in asked.cache_dir.iterdir())


def test_what_one_step_makes_in_a_child_is_limited(tmp_path: Path) -> None:
    """Reading that takes more memory than it may is one clear error."""
    folder = copy_fixture("bert-cls", tmp_path)
    # Each value stands for a kilobyte once it is parsed.
    table: dict[str, dict[str, str]] = {str(number): {} for number in range(300_000)}
    edit_json(folder / "config.json", table=table)
    limits = ValidationLimits(timeout_s=120, memory_bytes=64 << 20)
    with pytest.raises(ModelError, match="memory") as caught:
        _load(_validation(folder, limits=limits))
    assert str(folder) in str(caught.value)


def test_an_error_of_the_child_is_that_of_the_model(tmp_path: Path) -> None:
    """What is wrong with a folder is told as if it had been read here."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "config.json", vocab_size=7)
    with pytest.raises(ModelError, match=r"does not fit config\.json") as caught:
        _load(_validation(folder))
    assert str(folder / "model.safetensors") in str(caught.value)


def test_a_cache_that_is_only_read_serves(tmp_path: Path, children: Children) -> None:
    """Where the graph is there, but no note, a child reads the model at each start."""
    if _ran_without_privileges(test_a_cache_that_is_only_read_serves):
        return
    folder = copy_fixture("bert-mean", tmp_path)
    asked = _validation(folder)
    built = _load(asked)
    shutil.rmtree(asked.cache_dir / validation.describe(asked).key)
    asked.cache_dir.chmod(0o500)
    assert _load(asked) == built
    assert _load(asked) == built
    assert children.count == 3


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A model that is not in a read-only cache is told so in one line."""
    if _ran_without_privileges(test_a_cache_that_cannot_be_written):
        return
    folder = copy_fixture("bert-mean", tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    with pytest.raises(ModelError, match="cannot be used"):
        _load(_validation(folder))
