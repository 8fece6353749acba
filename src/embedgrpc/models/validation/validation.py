"""Has a child process read a model's files before this process does.

The child reads all that a model's folder holds, tries the tokenizer and builds the graph into the
cache. Where it succeeds it leaves a note in the cache that names what it read by its content. This
process then reads the same content again, which is known to do no harm, and loads the graph that
was built. Where there is such a note no child is started.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import secrets
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from embedgrpc.machine.memory import available_memory_bytes
from embedgrpc.models.errors import ModelError, ModelUnavailableError
from embedgrpc.models.files.json_file import limit_bytes
from embedgrpc.models.files.model_file import find_member, hash_file, open_file
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.representations import ServedTokenOutputs
from embedgrpc.models.graphs.cache import (
    NotBuiltError,
    check_writable,
    find_entry,
    has_entries,
    remove_unfinished,
)
from embedgrpc.models.sources.hub import HEAD_NAMES, is_settings_name, read_module_folders
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.validation.child_process import (
    ChildError,
    ChildGroup,
    Message,
    Work,
    run_child,
)
from embedgrpc.models.validation.limits import ValidationLimits

# To be raised whenever more is checked than before.
_VERSION = 1
# What parses files: another release may do otherwise.
_PARSERS = ("embedgrpc", "tokenizers", "safetensors")
_CHILD = "embedgrpc.models.validation.child"

# Python, its libraries and a tokenizer, whatever the size of the weights.
_MEMORY_BASE_BYTES = 2 << 30
# An ONNX graph is read, parsed, written and opened again.
_MEMORY_PER_WEIGHT_BYTE = 6
_WEIGHT_SUFFIXES = (".onnx", ".safetensors", ".bin", ".pt", "_data", ".data")
_LISTED_MAX = 10_000
# Why a process cannot be started now.
_PASSING_ERRORS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# A head is one layer. It is hashed here, where nothing limits the time.
_HEAD_BYTES_MAX = 256 << 20

T = TypeVar("T")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is to be read, and how.

    Attributes:
        files: The model.
        overrides: What the configuration says about it.
        served: What a server that runs the model makes of its tokens; None for a model that runs
            here.
        escape_special_tokens: As `Tokenizer.load` takes it.
        build: Whether the graph is built.
        cache_dir: Where graphs and notes are kept.
        limits: Of the child.
    """

    files: ModelFiles
    overrides: ModelOverrides
    served: ServedTokenOutputs | None = None
    escape_special_tokens: bool = False
    build: bool = True
    cache_dir: Path
    limits: ValidationLimits


@dataclass(frozen=True, slots=True)
class FileDigests:
    """The files that say what a model is, as they were read.

    Attributes:
        key: Of the note in the cache that a child read them.
        digests: The SHA-256 of each in hexadecimal, by its path within the model's folder.
    """

    key: str
    digests: Mapping[str, str]

    def digest_of(self, path: Path, root: Path) -> str:
        """The SHA-256 that a file must have; that of no file where it was not there."""
        return self.digests.get(path.relative_to(root).as_posix(), "-")


@dataclass(frozen=True, slots=True)
class ChildJob:
    """What the child is told.

    Attributes:
        validation: What is to be read, without the repository.
        key: Of the description that it must find.
        listing: What the repository holds; None where there is none.
        memory_bytes: The most memory that it may take.
        tag: Names what it leaves unfinished in the cache.
    """

    validation: Validation
    key: str
    listing: frozenset[str] | None
    memory_bytes: int
    tag: str


def load_validated(
    validation: Validation, children: ChildGroup, use: Callable[[FileDigests], T]
) -> T:
    """Loads a model from files that a child process has read.

    Args:
        validation: What is read.
        children: Ends the child early.
        use: Loads the model. It must not build anything: `NotBuiltError` says that it lacks an
            entry of the cache.

    Returns:
        What `use` gives.

    Raises:
        ModelError: The files cannot be used; the child crashed, took too long or too much memory.
        ModelUnavailableError: The machine cannot start a child now.
    """
    description = describe(validation)
    if find_entry(validation.cache_dir, description.key) is not None:
        try:
            return use(description)
        except NotBuiltError:
            pass  # the weights are others, or the cache was cleared
    _run(validation, description, children)
    return use(description)


def describe(validation: Validation) -> FileDigests:
    """Reads which files say what a model is, and their content. Parses next to nothing.

    Raises:
        ModelError: A file cannot be read, is too large, is no regular file, or is outside of the
            model's folder.
    """
    root = validation.files.folder
    digests: dict[str, str] = {}
    for folder in _folders(root):
        names = set(_names_of_settings(folder))
        names.update(HEAD_NAMES if folder == root else ())
        for name in sorted(names):
            path = folder / name
            if not path.exists() and not path.is_symlink():
                continue
            _check_size(path, root)
            digests[path.relative_to(root).as_posix()] = hash_file(path, root)
    meaning = {
        "version": _VERSION,
        "parsers": [_version(name) for name in _PARSERS],
        "overrides": dataclasses.asdict(validation.overrides),
        "served": validation.served and dataclasses.asdict(validation.served),
        "escape_special_tokens": validation.escape_special_tokens,
        "digests": digests,
    }
    key = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
    return FileDigests(key=f"{key}-validated", digests=digests)


def _folders(root: Path) -> list[Path]:
    """The folders in which files that describe a model may lie, each once."""
    named_by = f"{root / 'modules.json'}: path"
    names = ("", *read_module_folders(root))
    return list(dict.fromkeys(find_member(root, root, name, named_by=named_by) for name in names))


def _names_of_settings(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []  # a module without settings
    return [path.name for path in folder.iterdir() if is_settings_name(path.name)]


def _check_size(path: Path, root: Path) -> None:
    limit = _HEAD_BYTES_MAX if path.name in HEAD_NAMES else limit_bytes(path.name)
    with open_file(path, root) as file:
        size = file.seek(0, 2)
    if size > limit:
        raise ModelError(f"{path} has {size} bytes, more than the limit of {limit}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _run(validation: Validation, description: FileDigests, children: ChildGroup) -> None:
    if not has_entries(validation.cache_dir):
        # Of a cache that is only read the graph may be there.
        check_writable(validation.cache_dir)
    repository = validation.files.repository
    failed: list[ModelError] = []
    memory_bytes = validation.limits.memory_bytes or _choose_memory(validation.files)
    job = ChildJob(
        validation=dataclasses.replace(
            validation, files=dataclasses.replace(validation.files, repository=None)
        ),
        key=description.key,
        listing=repository.names if repository is not None else None,
        memory_bytes=memory_bytes,
        tag=secrets.token_hex(8),
    )
    work = Work(
        module=_CHILD,
        job=job,
        timeout_s=validation.limits.timeout_s,
        answer=lambda message: _answer(message, validation.files, failed),
    )
    place = validation.files.folder
    try:
        result = run_child(work, children)["result"]
    except OSError as error:
        # A machine that is short of processes, memory or open files may have them later.
        kind = ModelUnavailableError if error.errno in _PASSING_ERRORS else ModelError
        raise kind(
            f"{place} cannot be read: no process can be started: {error.strerror}"
        ) from error
    except ChildError as error:
        remove_unfinished(validation.cache_dir, job.tag)
        raise ModelError(f"{place} cannot be read: {_explain(error, memory_bytes)}") from None
    if failed:
        raise failed[0]
    if result.get("memory"):
        raise ModelError(f"{place} cannot be read: {_explain_memory(memory_bytes)}")
    if result.get("stack"):
        # What nobody foresaw is told with its stack.
        _logger.error("model cannot be read", extra={"stack": result["stack"]})
    if result.get("error"):
        raise ModelError(str(result["error"]))


def _explain(error: ChildError, memory_bytes: int) -> str:
    who = f"the process that reads it {error}"
    if error.timed_out:
        return f"{who}: set load_timeout_s higher if its files are to be trusted"
    if error.signal in (signal.SIGABRT, signal.SIGKILL):
        return f"{who}, as where memory runs out; its limit is {memory_bytes} bytes"
    if error.signal:
        return f"{who}: one of its files breaks a library"
    return who


def _explain_memory(memory_bytes: int) -> str:
    return (
        f"it takes more than {memory_bytes} bytes of memory: set load_memory_bytes higher if its"
        " files are to be trusted"
    )


def _answer(message: Message, files: ModelFiles, failed: list[ModelError]) -> Message | None:
    """Answers the child: brings files from the repository, and repeats its log.

    Args:
        message: From the child.
        files: The model.
        failed: Takes why files cannot be brought.

    Returns:
        What the child waits for; None where it waits for nothing.
    """
    if "fetch" in message:
        try:
            # Only what the repository itself lists is brought.
            files.fetch([str(name) for name in message["fetch"]])
        except ModelError as error:
            failed.append(error)
            return {"error": str(error)}
        return {}
    if "log" in message:
        extra: dict[str, Any] = message.get("extra", {})
        _logger.log(logging.WARNING, "%s", message["log"], extra={"child": True, **extra})
    return None


def _choose_memory(files: ModelFiles) -> int:
    """What reading a model may take: by the size of its weights, and no more than there is."""
    wanted = _MEMORY_BASE_BYTES + _MEMORY_PER_WEIGHT_BYTE * _count_weight_bytes(files)
    return min(wanted, available_memory_bytes())


def _count_weight_bytes(files: ModelFiles) -> int:
    if files.repository is not None:
        return sum(
            size for name, size in files.repository.sizes.items() if name.endswith(_WEIGHT_SUFFIXES)
        )
    total = 0
    for number, path in enumerate(files.folder.rglob("*")):
        if number > _LISTED_MAX:
            break
        if path.name.endswith(_WEIGHT_SUFFIXES) and path.is_file():
            total += path.stat().st_size
    return total
