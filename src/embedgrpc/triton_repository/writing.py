"""Writes models to a repository, the folder from which a Triton server loads them."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from embedgrpc.models.kinds import WeightType
from embedgrpc.triton_repository.config import (
    RepositoryModel,
    make_config,
    print_config,
    warm_up_files,
)
from embedgrpc.triton_repository.errors import RepositoryError
from embedgrpc.triton_repository.execution import Execution, Processor

CONFIG_NAME = "config.pbtxt"
# Lists what was written, so that only that is ever replaced. Triton does not read it.
_MANIFEST_NAME = "embedgrpc.json"
_VERSION = "1"
_WARM_UP_FOLDER = "warmup"
_UNFINISHED = ".unfinished-"
# Valid as the name of a folder on every system, and of a model in calls.
_NAME = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
# float16 is slower than float32 on CPUs, and ONNX Runtime has no int8 products for GPUs.
_PROCESSORS = {WeightType.FLOAT16: Processor.GPU, WeightType.INT8: Processor.CPU}


def check_place(repository: Path, name: str) -> None:
    """Check that a model may be written under a name.

    Args:
        repository: The folder of models; it need not exist.
        name: The name of the model.

    Raises:
        RepositoryError: The name is invalid, or taken by files that this command did not write or
            that have changed since.
    """
    if not _NAME.fullmatch(name):
        raise RepositoryError(
            f"{name!r} cannot name a model's folder: give letters, digits, _, . and - as NAME in"
            " ID=SOURCE"
        )
    if repository.exists() and not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder")
    place = repository / name
    if place.is_symlink() or (place.exists() and not _is_ours(place)):
        raise RepositoryError(
            f"{place} was not written by this command, or has changed since: move it away, or give"
            " another name with ID=SOURCE"
        )


def write_model(repository: Path, model: RepositoryModel, execution: Execution) -> Path:
    """Write a model, replace an earlier one of its name, and return its folder.

    The folder is written under another name and then renamed, so that it is never incomplete.

    Args:
        repository: The folder of models; made if it does not exist.
        model: The model.
        execution: How the server runs it.

    Raises:
        RepositoryError: The place is taken or cannot be written, or the weights cannot run on that
            device.
    """
    check_place(repository, model.name)
    weight_type = model.properties.weight_type
    if _PROCESSORS.get(weight_type, execution.processor) is not execution.processor:
        raise RepositoryError(
            f"weight_type {weight_type} runs on a {_PROCESSORS[weight_type]} only: set kind to"
            f" {_PROCESSORS[weight_type]}"
        )
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=repository) as unfinished:
            folder = Path(unfinished) / model.name
            _fill(folder, model, execution)
            return _move_into_place(folder, repository / model.name)
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be written: {error.strerror}") from error


def _fill(folder: Path, model: RepositoryModel, execution: Execution) -> None:
    for part in (_VERSION, _WARM_UP_FOLDER):
        (folder / part).mkdir(parents=True)
    config = print_config(make_config(model, execution))
    (folder / CONFIG_NAME).write_text(config, "utf-8")
    for name, content in warm_up_files(model, execution).items():
        (folder / _WARM_UP_FOLDER / name).write_bytes(content)
    # Under their own names: the graph refers to its weights by relative paths.
    for path in model.graph.files:
        shutil.copyfile(path, folder / _VERSION / path.name)
    manifest = {"config": _digest(folder), "files": sorted(_files(folder))}
    (folder / _MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def _move_into_place(folder: Path, place: Path) -> Path:
    if place.exists():
        # Into the temporary folder, which is about to be removed.
        aside = folder.with_name(f"{folder.name}.old")
        place.rename(aside)
        try:
            return folder.rename(place)
        except OSError:
            aside.rename(place)
            raise
    return folder.rename(place)


def _is_ours(place: Path) -> bool:
    """Return whether a folder has the files and the configuration that were written."""
    try:
        manifest = json.loads((place / _MANIFEST_NAME).read_bytes())
        known = {*manifest["files"], _MANIFEST_NAME}
        return known == set(_files(place)) and manifest["config"] == _digest(place)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if not path.is_dir():
            yield path.relative_to(folder).as_posix()


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / CONFIG_NAME).read_bytes()).hexdigest()
