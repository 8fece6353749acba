"""The version of a release: every file that carries it, and what must be true of it.

Between two releases the version is that of the next one with `.dev0`, and what is new stands under
`Unreleased` in the changelog. A release has a section with its date, and the tag `vX.Y.Z`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_FINAL = re.compile(r"\d+\.\d+\.\d+")
_VERSION = r"\d+\.\d+\.\d+(?:\.dev\d+)?"
_IMAGE = rf"(embedgrpc:)({_VERSION})(?=-(?:cpu|cuda)\b)"
_LABEL = rf'(app\.kubernetes\.io/version: ")({_VERSION})'
# Where the version stands: each pattern must be found, and its second group is the version.
PLACES = {
    "pyproject.toml": (rf'^(version = ")({_VERSION})', rf"(embedgrpc-client==)({_VERSION})"),
    "clients/python/pyproject.toml": (rf'^(version = ")({_VERSION})',),
    "docker/Dockerfile.cpu": (_IMAGE, rf"^(ARG VERSION=)({_VERSION})"),
    "docker/Dockerfile.cuda": (_IMAGE, rf"^(ARG VERSION=)({_VERSION})"),
    "docker/compose.yaml": (_IMAGE,),
    "docker/compose.triton.yaml": (_IMAGE,),
    "deploy/helm/embedgrpc/Chart.yaml": (
        r"^(version: )(\d+\.\d+\.\d+(?:-dev\d+)?)$",  # Helm wants SemVer: 0.1.0-dev0
        rf'^(appVersion: ")({_VERSION})',
    ),
    "deploy/kubernetes/embedgrpc.yaml": (_IMAGE, _LABEL),
    "deploy/kubernetes/embedgrpc-gpu.yaml": (_IMAGE, _LABEL),
    "docs/deployment.md": (_IMAGE,),
    "docs/grpcurl.md": (rf'("version": ")({_VERSION})',),
}
_OTHERS = "[[tool.uv.dependency-metadata]]"
_CHANGELOG = "CHANGELOG.md"
_HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    date: str | None
    text: str


def read_version(root: Path) -> str:
    """Return the version of the server's package."""
    found = re.search(PLACES["pyproject.toml"][0], _read(root, "pyproject.toml"), re.MULTILINE)
    assert found is not None
    return found[2]


def write_version(root: Path, version: str, date: str) -> None:
    """Write a version into every file, and date its section of the changelog if it is a release.

    Args:
        root: The repository.
        version: X.Y.Z for a release, X.Y.Z.dev0 for what comes after one.
        date: The day of the release, as YYYY-MM-DD.

    Raises:
        ValueError: It is not such a version.
    """
    if not re.fullmatch(_VERSION, version):
        raise ValueError(f"{version!r} is not X.Y.Z or X.Y.Z.dev0")
    for name, patterns in PLACES.items():
        own, others, rest = _read(root, name).partition(_OTHERS)
        for pattern in patterns:
            own = re.sub(pattern, rf"\g<1>{_form(pattern, version)}", own, flags=re.MULTILINE)
        (root / name).write_text(own + others + rest, "utf-8")
    changelog = _read(root, _CHANGELOG)
    if _FINAL.fullmatch(version):
        dated = f"## [Unreleased]\n\n## [{version}] - {date}\n"
        changelog = changelog.replace("## [Unreleased]\n", dated, 1)
    (root / _CHANGELOG).write_text(changelog, "utf-8")


def find_problems(root: Path, *, tags: list[str], head_tags: list[str]) -> list[str]:
    """Return what does not agree, a line each.

    Args:
        root: The repository.
        tags: The tags of releases, such as "v0.1.0", that lead to this commit.
        head_tags: Those of this commit itself.
    """
    version = read_version(root)
    problems = []
    for name, patterns in PLACES.items():
        text = _read(root, name).partition(_OTHERS)[0]
        for pattern in patterns:
            found = {match[2] for match in re.finditer(pattern, text, re.MULTILINE)}
            if found != {_form(pattern, version)}:
                problems.append(f"{name} has {sorted(found) or 'none'} instead of {version}")
    sections = _sections(_read(root, _CHANGELOG))
    problems += _changelog_problems(version, sections)
    released = {section.name for section in sections}
    problems += [
        f"the tag {tag} has no section in {_CHANGELOG}"
        for tag in tags
        if tag.removeprefix("v") not in released
    ]
    problems += [
        f"the tag {tag} is on a commit of version {version}"
        for tag in head_tags
        if tag != f"v{version}"
    ]
    return problems


def _changelog_problems(version: str, sections: list[_Section]) -> list[str]:
    if not sections or sections[0].name != "Unreleased":
        return [f"{_CHANGELOG} does not begin with [Unreleased]"]
    unreleased, *released = sections
    problems = [f"[{section.name}] has no date" for section in released if section.date is None]
    numbers = [tuple(map(int, section.name.split("."))) for section in released]
    if numbers != sorted(numbers, reverse=True):
        problems.append("the releases are not in order, the newest first")
    if _FINAL.fullmatch(version):
        if unreleased.text:
            problems.append(f"[Unreleased] is not empty, although {version} is a release")
        if not released or released[0].name != version:
            problems.append(f"the newest section is not [{version}]")
        return problems
    number = tuple(map(int, version.partition(".dev")[0].split(".")))
    if numbers and numbers[0] >= number:
        problems.append(f"{version} is older than the release {released[0].name}")
    return problems


def _sections(changelog: str) -> list[_Section]:
    headings = list(_HEADING.finditer(changelog))
    ends = [heading.start() for heading in headings[1:]] + [len(changelog)]
    return [
        _Section(heading["name"], heading["date"], changelog[heading.end() : end].strip())
        for heading, end in zip(headings, ends, strict=True)
    ]


def _form(pattern: str, version: str) -> str:
    """Return the version as a place writes it."""
    return version.replace(".dev", "-dev") if "-dev" in pattern else version


def _read(root: Path, name: str) -> str:
    return (root / name).read_text("utf-8")
