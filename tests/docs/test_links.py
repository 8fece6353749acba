"""Links between documents lead somewhere, and the README stays short."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README_LINES_MAX = 150
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Of links and of pictures: a target in round brackets after a text in square ones.
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def documents() -> list[Path]:
    """Return every Markdown file that is tracked, or will be."""
    listed = subprocess.run(
        ["/usr/bin/env", "git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = {ROOT / line for line in listed.stdout.splitlines()}
    return sorted(path for path in paths if path.is_file())


def prose(path: Path) -> str:
    """Return a document without its blocks of code."""
    return _FENCED.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(path)):
        words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        anchor = words.strip().replace(" ", "-")
        count = 0
        while (name := f"{anchor}-{count}" if count else anchor) in found:
            count += 1
        found.add(name)
    return found


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    """Each relative link names a file that is there and, after #, a heading in it."""
    broken = []
    for target in _LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    """The index of the documentation links to each of its pages."""
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in _LINK.findall(prose(index))}
    assert {path for path in index.parent.glob("*.md") if path != index} <= linked


def test_the_readme_is_short() -> None:
    """A first page is read to its end."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES_MAX
