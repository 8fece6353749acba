"""Validates a model's files in a child process before this process reads them.

The child reads the model's folder, tries the tokenizer and builds the graph into the cache. On
success it writes a note to the cache, whose key is a hash of the files' content. This process then
reads the same content, which is now known to be harmless, and loads the graph from the cache. If
there is already a note, no child is started.
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
from embedgrpc.models.progress import reporter
from embedgrpc.models.sources.config_files import (
    ADAPTER_NAME,
    HEAD_NAMES,
    is_settings_name,
    read_module_folders,
)
from embedgrpc.models.sources.source import ModelFiles, find_local
from embedgrpc.models.validation.child_process import (
    ChildCall,
    ChildError,
    ChildGroup,
    Message,
    run_child,
)
from embedgrpc.models.validation.limits import ValidationLimits

# Increase it when validation checks more.
_VERSION = 2
# The parsers of files: another release may behave differently.
_PARSERS = ("embedgrpc", "tokenizers", "safetensors")
_CHILD = "embedgrpc.models.validation.child"

# Python, its libraries and a tokenizer, whatever the size of the weights.
_MEMORY_BASE_BYTES = 2 << 30
# An ONNX graph is read, parsed, written and opened again.
_MEMORY_PER_WEIGHT_BYTE = 6
_WEIGHT_SUFFIXES = (".onnx", ".safetensors", ".bin", ".pt", "_data", ".data")
_LISTED_MAX = 10_000
# The machine is short of processes, memory or descriptors: a retry may succeed.
_TEMPORARY_ERRORS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# A head is one layer. This process hashes it, without a limit on time.
_HEAD_BYTES_MAX = 256 << 20

T = TypeVar("T")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What to validate, and how.

    Attributes:
        overrides: The configuration of the model.
        served: The token outputs of the server that runs the model; None if it runs here.
        escape_special_tokens: See `Tokenizer.load`.
        build: Whether to build the graph.
        cache_dir: The folder of graphs and notes.
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
    """The content of the files that describe a model.

    Attributes:
        key: The key of the note in the cache.
        digests: The SHA-256 of each file in hexadecimal, by its path in the model's folder.
    """

    key: str
    digests: Mapping[str, str]

    def digest_of(self, path: Path, root: Path) -> str:
        """Return the SHA-256 that a file must have; no file has the one of a missing file."""
        return self.digests.get(path.relative_to(root).as_posix(), "-")


@dataclass(frozen=True, slots=True)
class ChildJob:
    """The job of the child.

    Attributes:
        validation: Without the repository.
        key: The key that the child must compute as well.
        listing: The files in the repository; None without a repository.
        memory_bytes: The memory limit.
        tag: Marks the child's unfinished entries in the cache.
    """

    validation: Validation
    key: str
    listing: frozenset[str] | None
    memory_bytes: int
    tag: str


def load_validated(
    validation: Validation, children: ChildGroup, use: Callable[[FileDigests], T]
) -> T:
    """Load a model from files that a child process has validated.

    Args:
        validation: What to validate.
        children: The group to which the child belongs.
        use: Loads the model. It must not build a graph, but raise `NotBuiltError` if the cache
            lacks one.

    Returns:
        The result of `use`.

    Raises:
        ModelError: The files cannot be used; the child crashed, took too long or too much memory.
        ModelUnavailableError: The machine cannot start a child now.
    """
    digests = hash_files(validation)
    if find_entry(validation.cache_dir, digests.key) is not None:
        try:
            return use(digests)
        except NotBuiltError:
            pass  # the weights changed, or the cache was cleared
    _run(validation, digests, children)
    return use(digests)


def hash_files(validation: Validation) -> FileDigests:
    """Hash the files that describe a model; of these only `modules.json` is parsed.

    Raises:
        ModelError: A file cannot be read, is too large, not a regular file, or outside of the
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
        "adapter": _hash_adapter(validation.files.adapter or validation.overrides.adapter),
    }
    key = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
    return FileDigests(key=f"{key}-validated", digests=digests)


def _hash_adapter(source: str) -> str:
    """Return the digest of the settings of an adapter elsewhere; empty without one."""
    found = find_local(source) if source else None
    if found is None or not (found.folder / ADAPTER_NAME).exists():
        return ""
    _check_size(found.folder / ADAPTER_NAME, found.folder)
    return hash_file(found.folder / ADAPTER_NAME, found.folder)


def _folders(root: Path) -> list[Path]:
    """Return the folders of files that describe a model, without duplicates."""
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


def _run(validation: Validation, digests: FileDigests, children: ChildGroup) -> None:
    if not has_entries(validation.cache_dir):
        # A read-only cache with entries may contain the graph.
        check_writable(validation.cache_dir)
    repository = validation.files.repository
    failed: list[ModelError] = []
    memory_bytes = validation.limits.memory_bytes or _choose_memory(validation.files)
    job = ChildJob(
        validation=dataclasses.replace(
            validation, files=dataclasses.replace(validation.files, repository=None)
        ),
        key=digests.key,
        listing=repository.names if repository is not None else None,
        memory_bytes=memory_bytes,
        tag=secrets.token_hex(8),
    )
    call = ChildCall(
        module=_CHILD,
        job=job,
        timeout_s=validation.limits.timeout_s,
        answer=lambda message: _answer(message, validation.files, failed),
    )
    place = validation.files.folder
    if validation.build:
        _logger.info("building graph", extra={"source": validation.files.source})
    try:
        result = run_child(call, children)["result"]
    except OSError as error:
        kind = ModelUnavailableError if error.errno in _TEMPORARY_ERRORS else ModelError
        raise kind(
            f"{place} cannot be read: no process can be started: {error.strerror}"
        ) from error
    except ChildError as error:
        reporter.report(_building(validation.files), 1, 1)
        remove_unfinished(validation.cache_dir, job.tag)
        raise ModelError(f"{place} cannot be read: {_explain(error, memory_bytes)}") from None
    if failed:
        raise failed[0]
    if result.get("memory"):
        raise ModelError(f"{place} cannot be read: {_explain_memory(memory_bytes)}")
    if result.get("stack"):
        # An unexpected error.
        _logger.error("model cannot be read", extra={"stack": result["stack"]})
    if result.get("error"):
        raise ModelError(str(result["error"]))


def _explain(error: ChildError, memory_bytes: int) -> str:
    problem = f"the process that reads it {error}"
    if error.timed_out:
        return f"{problem}: increase load_timeout_s if you trust its files"
    if error.signal in (signal.SIGABRT, signal.SIGKILL):
        return f"{problem}, probably out of memory; its limit is {memory_bytes} bytes"
    if error.signal:
        return f"{problem}: one of its files crashes a library"
    return problem


def _explain_memory(memory_bytes: int) -> str:
    return (
        f"it needs more than {memory_bytes} bytes of memory: increase load_memory_bytes if you"
        " trust its files"
    )


def _building(files: ModelFiles) -> str:
    return f"building graph of {files.source}"


def _answer(message: Message, files: ModelFiles, failed: list[ModelError]) -> Message | None:
    """Handle a message from the child: download files, log a line or report progress.

    Args:
        message: The message.
        files: The model.
        failed: Gets the error of a failed download.

    Returns:
        The answer; None if the child does not wait for one.
    """
    if "fetch" in message:
        try:
            # Downloads only files that the repository lists.
            files.fetch([str(name) for name in message["fetch"]])
        except ModelError as error:
            failed.append(error)
            return {"error": str(error)}
        return {}
    match message:
        case {"progress": [int(done), int(total)]}:
            reporter.report(_building(files), done, total)
    if "log" in message:
        extra: dict[str, Any] = message.get("extra", {})
        _logger.log(logging.WARNING, "%s", message["log"], extra={"child": True, **extra})
    return None


def _choose_memory(files: ModelFiles) -> int:
    """Return the memory limit: by the size of the weights, at most what is available."""
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
