"""From the name of a model to the folder that holds its files."""

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from embedgrpc.models.errors import ModelError

_PACKAGE_SCHEME = "package:"
_FORMS = "the path of an existing folder, or package:IMPORT_NAME/SUBFOLDER"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A folder with a model's files.

    Attributes:
        source: The name that led here, as it was given.
        folder: Where the files are.
        revision: Which state of the files it is; empty where nothing says.
    """

    source: str
    folder: Path
    revision: str


def resolve(source: str) -> ModelFiles:
    """Finds the files of a model.

    Args:
        source: The path of a folder, or `package:IMPORT_NAME/SUBFOLDER` for files inside an
            installed Python package. The package is not imported.

    Returns:
        The folder; for a package, the revision is the version of its distribution.

    Raises:
        ModelError: The source has another form, or there is no such folder.
    """
    if source.startswith(_PACKAGE_SCHEME):
        return _resolve_package(source)
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return ModelFiles(source=source, folder=folder.resolve(), revision="")
    if source and folder.exists():
        raise ModelError(f"model source {source!r} is a file: give the folder that holds it")
    raise ModelError(f"model source {source!r} is no folder here: a source is {_FORMS}")


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
