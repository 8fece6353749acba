"""Finds the folder of a model's files from its source."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """The files of a model.

    Attributes:
        source: The source as the user wrote it.
        folder: The folder of the files.
        revision: The commit or version of the files; empty if unknown.
        repository: Provides files that are not in the folder yet; None if all are there.
        adapter: The folder of the adapter to merge: of the one that the source names, if these are
            the files of its base model, or of the one in the configuration; else empty.
        adapter_source: A source of exactly this adapter.
    """

    source: str
    folder: Path
    revision: str
    repository: "HubRepository | None" = None
    adapter: str = ""
    adapter_source: str = ""

    @property
    def pinned_source(self) -> str:
        """A source of exactly these files: an absolute path, or a repository with its commit."""
        if self.repository is not None:
            return self.repository.pinned_source
        if Path(self.source).expanduser().resolve() == self.folder:
            return str(self.folder)
        return self.source

    def has(self, name: str) -> bool:
        """Whether the model has a file, in the folder or in its repository."""
        if self.repository is not None and self.repository.has(name):
            return True
        return (self.folder / name).exists()

    def fetch(self, names: Sequence[str]) -> None:
        """Download files, unless they are in the folder or not in the repository.

        Args:
            names: Relative to the folder.

        Raises:
            ModelError: The download fails.
        """
        if self.repository is not None:
            self.repository.fetch([name for name in names if self.repository.has(name)])


def resolve(source: str, adapter: str = "") -> ModelFiles:
    """Find the files of a model.

    Args:
        source: One of
            - the path of a folder, which wins over the other forms;
            - `package:IMPORT_NAME/SUBFOLDER` for files inside an installed Python package, which
              is not imported;
            - `hf:ORG/NAME@REVISION`, `hf:ORG/NAME` or just `ORG/NAME` for a repository of the
              Hugging Face Hub. All files but the weights are downloaded; the weights are
              downloaded later. A repository with nothing but an adapter stands for the repository
              of its base model, with the adapter.
        adapter: A source, of the same forms, of an adapter to merge into the weights; empty for
            none. It is downloaded with its weights.

    Returns:
        The files. The revision is a package's version, or a repository's commit.

    Raises:
        ModelError: The source has another form; there is no such folder, package or repository;
            or the download fails.
    """
    files = find_local(source) or _resolve_repository(source)
    if not adapter:
        return files
    if files.adapter:
        raise ModelError(f"model source {source!r} is an adapter, and adapter is set to another")
    folder, pinned = _resolve_adapter(adapter, source)
    return replace(files, adapter=str(folder), adapter_source=pinned)


def find_local_adapter(adapter: str) -> Path | None:
    """Return the folder of an adapter that is a folder or a package; None for a repository.

    Raises:
        ModelError: See `resolve`.
    """
    try:
        local = find_local(adapter)
    except ModelError as error:
        raise ModelError(f"adapter: {error}") from None
    if local is None:
        return None
    # Late, because it imports NumPy, which settings and `--help` do not need.
    from embedgrpc.models.sources.config_files import ADAPTER_NAME  # noqa: PLC0415 - see above

    if not (local.folder / ADAPTER_NAME).exists():
        raise ModelError(f"adapter {adapter!r}: {local.folder / ADAPTER_NAME} is missing")
    return local.folder


def find_local(source: str) -> ModelFiles | None:
    """Return the files of a model that is a folder or a package; None for a repository.

    Raises:
        ModelError: See `resolve`.
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return ModelFiles(source=source, folder=folder.resolve(), revision="")
    if source.startswith(_PACKAGE_SCHEME):
        return _resolve_package(source)
    if source and folder.exists():
        raise ModelError(f"model source {source!r} is a file: use the folder that contains it")
    if is_triton_source(source):
        raise ModelError(f"model source {source!r} runs on a Triton server and has no files here")
    if _HUB_NAME.fullmatch(source.removeprefix(_HUB_SCHEME)):
        return None
    raise ModelError(f"model source {source!r} is not a folder here: a source is {_FORMS}")


def short_name(source: str) -> str:
    """Return a name for the model: the last part of its source, without a revision.

    A folder that is called `model` is named after its parent.

    Raises:
        ModelError: The source names a Triton server, but has another form.
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
    """Whether the package of a source `package:IMPORT_NAME/SUBFOLDER` is installed."""
    name = source.removeprefix(_PACKAGE_SCHEME).partition("/")[0]
    return importlib.util.find_spec(name) is not None


def _resolve_adapter(adapter: str, base: str) -> tuple[Path, str]:
    """Return the folder of an adapter, and a source of exactly this one."""
    local = find_local_adapter(adapter)
    if local is not None:
        return local, adapter if adapter.startswith(_PACKAGE_SCHEME) else str(local)
    opened = _open_repository(adapter, base=base)
    opened.fetch_adapter_weights()
    return opened.folder, opened.pinned_source


def _open_repository(source: str, *, base: str = "") -> "HubRepository":
    # Late, because it imports NumPy, which settings and `--help` do not need.
    from embedgrpc.models.sources.hub import HubRepository  # noqa: PLC0415 - see above
    from embedgrpc.models.sources.hub_errors import Named  # noqa: PLC0415 - beside it

    repository, _, revision = source.removeprefix(_HUB_SCHEME).partition("@")
    return HubRepository(Named(source, base), repository=repository, revision=revision)


def _resolve_repository(source: str) -> ModelFiles:
    opened = _open_repository(source)
    base = opened.fetch_adapter()
    if base is not None:
        name, base_revision = base
        named = f"{_HUB_SCHEME}{name}@{base_revision}" if base_revision else f"{_HUB_SCHEME}{name}"
        files = resolve(named)
        if files.adapter:
            raise ModelError(
                f"model source {source!r} is an adapter of {name}, which is an adapter itself:"
                " merge that one with peft, and save the model"
            )
        return replace(
            files,
            source=source,
            adapter=str(opened.folder),
            adapter_source=opened.pinned_source,
        )
    return ModelFiles(
        source=source, folder=opened.folder, revision=opened.commit, repository=opened
    )


def _resolve_package(source: str) -> ModelFiles:
    name, _, subfolder = source.removeprefix(_PACKAGE_SCHEME).partition("/")
    if not name.isidentifier():
        # Finding a dotted name imports its parents.
        raise ModelError(f"model source {source!r}: IMPORT_NAME must be a top-level package")
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:
        spec = None  # a module without a spec has this name, such as `__main__`
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
    # Mostly the distribution has the package's name, and the slower search below is not needed.
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
