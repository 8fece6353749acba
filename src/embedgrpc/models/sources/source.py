"""From the name of a model to the folder that holds its files."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from embedgrpc.models.errors import ModelError
from embedgrpc.models.sources.triton_source import is_triton_source, parse_triton_source

if TYPE_CHECKING:
    from embedgrpc.models.sources.hub import HubRepository

_PACKAGE_SCHEME = "package:"
_HUB_SCHEME = "hf:"
# The name of many a folder that holds a model.
_NAMELESS = "model"
_FORMS = (
    "the path of an existing folder, package:IMPORT_NAME/SUBFOLDER, or hf:ORG/NAME[@REVISION] or "
    "ORG/NAME[@REVISION] for the Hugging Face Hub"
)
_HUB_NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w.-]*(?:/\w[\w.-]*)*))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A folder with a model's files.

    Attributes:
        source: The name that led here, as it was given.
        folder: Where the files are.
        revision: Which state of the files it is; empty where nothing says.
        repository: Where files come from that are not in the folder yet; None where all are.
    """

    source: str
    folder: Path
    revision: str
    repository: "HubRepository | None" = None

    @property
    def pinned_source(self) -> str:
        """A source that leads to these files from any folder, and to no later state of them."""
        if self.repository is not None:
            return f"{_HUB_SCHEME}{self.repository.name}@{self.repository.commit}"
        if Path(self.source).expanduser().resolve() == self.folder:
            return str(self.folder)
        return self.source

    def has(self, name: str) -> bool:
        """Tells whether the model has a file, in the folder or in its repository."""
        if self.repository is not None and self.repository.has(name):
            return True
        return (self.folder / name).exists()

    def fetch(self, names: Sequence[str]) -> None:
        """Brings files from the repository to the folder; those of no repository are left out.

        Args:
            names: Relative to the folder.

        Raises:
            ModelError: They cannot be had.
        """
        if self.repository is not None:
            self.repository.fetch([name for name in names if self.repository.has(name)])


def resolve(source: str) -> ModelFiles:
    """Finds the files of a model.

    Args:
        source: One of
            - the path of a folder, which wins over everything else of that name;
            - `package:IMPORT_NAME/SUBFOLDER` for files inside an installed Python package, which
              is not imported;
            - `hf:ORG/NAME@REVISION`, `hf:ORG/NAME` or just `ORG/NAME` for a repository of the
              Hugging Face Hub. Brings the files that describe the model; its weights are brought
              when they are asked for.

    Returns:
        The folder. For a package, the revision is the version of its distribution; for a
        repository, its commit.

    Raises:
        ModelError: The source has another form, there is no such folder, package or repository,
            or its files cannot be had.
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return ModelFiles(source=source, folder=folder.resolve(), revision="")
    if source.startswith(_PACKAGE_SCHEME):
        return _resolve_package(source)
    if source and folder.exists():
        raise ModelError(f"model source {source!r} is a file: give the folder that holds it")
    if is_triton_source(source):
        raise ModelError(f"model source {source!r} runs on a server, and has no files here")
    name = _HUB_NAME.fullmatch(source.removeprefix(_HUB_SCHEME))
    if name is not None:
        return _resolve_repository(source, name["repository"], name["revision"] or "")
    raise ModelError(f"model source {source!r} is no folder here: a source is {_FORMS}")


def short_name(source: str) -> str:
    """Return a name for the model: the last part of its source, without a revision.

    A folder that is called `model` is named after its parent.

    Raises:
        ModelError: The source names a server, and has not the form of such sources.
    """
    if is_triton_source(source):
        return parse_triton_source(source).model
    name = _HUB_NAME.fullmatch(source.removeprefix(_HUB_SCHEME))
    if name is not None:
        return name["repository"].rpartition("/")[2]
    *parents, last = source.removeprefix(_PACKAGE_SCHEME).rstrip("/").split("/")
    if last == _NAMELESS and parents and parents[-1].strip("."):
        return parents[-1]
    return last


def is_package_installed(source: str) -> bool:
    """Tells whether the package that `package:IMPORT_NAME/SUBFOLDER` names is installed."""
    name = source.removeprefix(_PACKAGE_SCHEME).partition("/")[0]
    return importlib.util.find_spec(name) is not None


def _resolve_repository(source: str, repository: str, revision: str) -> ModelFiles:
    # Late, because it imports NumPy, which settings and `--help` do not need.
    from embedgrpc.models.sources.hub import HubRepository  # noqa: PLC0415 - see above

    opened = HubRepository(source, repository=repository, revision=revision)
    return ModelFiles(
        source=source, folder=opened.folder, revision=opened.commit, repository=opened
    )


def _resolve_package(source: str) -> ModelFiles:
    name, _, subfolder = source.removeprefix(_PACKAGE_SCHEME).partition("/")
    if not name.isidentifier():
        # A dotted name would be found by importing its parents.
        raise ModelError(f"model source {source!r}: IMPORT_NAME must be a top-level package")
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:
        spec = None  # something without a spec already goes by this name, such as `__main__`
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model source {source!r}: no package {name!r} is installed")
    for location in spec.submodule_search_locations:
        root = Path(location).resolve()
        folder = (root / subfolder).resolve()
        if not folder.is_relative_to(root):
            raise ModelError(f"model source {source!r}: SUBFOLDER leaves the package")
        if folder.is_dir():
            return ModelFiles(source=source, folder=folder, revision=_version(name))
    raise ModelError(f"model source {source!r}: package {name!r} has no folder {subfolder!r}")


def _version(import_name: str) -> str:
    # Most distributions are named as what they install, which saves reading all the others' lists.
    try:
        distribution = metadata.distribution(import_name)
    except metadata.PackageNotFoundError:
        pass
    else:
        top = {path.parts[0] for path in distribution.files or () if path.parts}
        if import_name in top:
            return distribution.version
    names = sorted(metadata.packages_distributions().get(import_name, ()))
    return metadata.version(names[0]) if names else ""
