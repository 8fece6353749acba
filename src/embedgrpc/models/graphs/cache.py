"""Keeps built graphs on disk, safe for several processes at once.

An entry is a folder that appears whole or not at all: it is made beside its place and renamed.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError

# Beside what was built in the folder of an entry.
MANIFEST_NAME = "manifest.json"
_UNFINISHED = ".unfinished-"
# A build takes seconds; what is older was left behind by a process that died.
_LEFTOVER_AGE_S = 24 * 3600.0

# What the unfinished entries of this process are called, so that another can remove them where
# this one is killed.
_tag = ""

_logger = logging.getLogger(__name__)


class NotBuiltError(ModelError):
    """The cache lacks an entry, and it must not be built here."""


def tag_unfinished(tag: str) -> None:
    """Names what this process leaves unfinished when it is killed; see `remove_unfinished`."""
    global _tag  # noqa: PLW0603 - it is the process that has one
    _tag = f"{tag}-"


def remove_unfinished(cache_dir: Path, tag: str) -> None:
    """Removes what a process left unfinished that was killed.

    Args:
        cache_dir: The cache; it need not exist.
        tag: Of the process, which no other has.
    """
    for path in cache_dir.glob(f"{_UNFINISHED}{tag}-*"):
        shutil.rmtree(path, ignore_errors=True)


def find_entry(cache_dir: Path, key: str) -> Mapping[str, Any] | None:
    """Finds an entry of the cache.

    Args:
        cache_dir: The cache; it need not exist.
        key: Of the entry.

    Returns:
        What was remembered about it; None where there is none, or it is damaged.
    """
    return _read_entry(cache_dir / key)


def load_or_build(
    cache_dir: Path, key: str, build: Callable[[Path], Mapping[str, Any]], *, may_build: bool = True
) -> tuple[Path, Mapping[str, Any]]:
    """Gives an entry of the cache, and makes it where there is none or it is damaged.

    Args:
        cache_dir: The cache; made where it does not exist.
        key: Of the entry, usable as the name of a folder.
        build: Fills an empty folder, and tells what to remember about it, as JSON has it.
        may_build: Whether it may be made.

    Returns:
        The entry's folder, and what was remembered.

    Raises:
        NotBuiltError: There is none, and it may not be made.
        ModelError: The cache cannot be written to.
    """
    place = cache_dir / key
    remembered = _read_entry(place)
    if remembered is not None:
        return place, remembered
    if not may_build:
        raise NotBuiltError(f"cache folder {cache_dir} has no entry {key}")
    try:
        return place, _build_entry(cache_dir, place, build)
    except OSError as error:
        raise _cannot_be_used(cache_dir, error) from error


def has_entries(cache_dir: Path) -> bool:
    """Whether the cache holds anything, by the name."""
    try:
        return any(not path.name.startswith(".") for path in cache_dir.iterdir())
    except OSError:
        return False


def check_writable(cache_dir: Path) -> None:
    """Check that an entry can be made, before work is done for it.

    Raises:
        ModelError: The cache cannot be written to.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _make_folder(cache_dir).rmdir()
    except OSError as error:
        raise _cannot_be_used(cache_dir, error) from error


def _cannot_be_used(cache_dir: Path, error: OSError) -> ModelError:
    return ModelError(
        f"cache folder {cache_dir} cannot be used: {error.strerror}: set cache_dir"
        " (--cache-dir) to another one, or run `embedgrpc pull` as a user who may write there"
    )


def _read_entry(place: Path) -> Mapping[str, Any] | None:
    try:
        manifest = json.loads((place / MANIFEST_NAME).read_bytes())
        digests, remembered = manifest["digests"], manifest["remembered"]
        damaged = [name for name, digest in digests.items() if _digest(place / name) != digest]
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ModelError(
            f"cache entry {error.filename} cannot be read: {error.strerror}: let this user read it,"
            " or set cache_dir (--cache-dir) to another folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        damaged, remembered = [MANIFEST_NAME], None
    if damaged or not isinstance(remembered, dict):
        _logger.warning("damaged cache entry is built anew", extra={"entry": str(place)})
        return None
    return remembered


def _digest(path: Path) -> str:
    """The SHA-256 of a file; nothing where there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build_entry(
    cache_dir: Path, place: Path, build: Callable[[Path], Mapping[str, Any]]
) -> Mapping[str, Any]:
    cache_dir.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(cache_dir)
    folder = _make_folder(cache_dir)
    try:
        remembered = dict(build(folder))
        digests = {path.name: _digest(path) for path in folder.iterdir()}
        manifest = json.dumps({"digests": digests, "remembered": remembered}, indent=1)
        (folder / MANIFEST_NAME).write_text(manifest)
        for path in folder.iterdir():
            _flush(path)
        return _move_into_place(folder, place, remembered)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_folder(parent: Path) -> Path:
    """Make a folder that others may read as the umask says, unlike those of `tempfile`."""
    folder = parent / f"{_UNFINISHED}{_tag}{secrets.token_hex(8)}"
    folder.mkdir()
    return folder


def _flush(path: Path) -> None:
    # Without this a power cut may leave files of the right size that hold zeros.
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _move_into_place(folder: Path, place: Path, remembered: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        folder.rename(place)
    except OSError:
        # Something is there: another process was faster, or what is there is damaged.
        present = _read_entry(place)
        if present is not None:
            return present
        aside = _make_folder(place.parent)
        try:
            place.rename(aside / "damaged")
            folder.rename(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return remembered


def _remove_leftovers(cache_dir: Path) -> None:
    oldest = time.time() - _LEFTOVER_AGE_S
    for path in cache_dir.glob(f"{_UNFINISHED}*"):
        try:
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue  # another process removed it
