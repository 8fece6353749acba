"""Keeps built graphs on disk, for several processes at once.

An entry is a folder. It is built under another name and then renamed, so that an entry is complete
as soon as it exists.
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

# Lies in the folder of each entry, beside the built files.
MANIFEST_NAME = "manifest.json"
_UNFINISHED = ".unfinished-"
# A build takes seconds; an older unfinished entry belongs to a process that died.
_LEFTOVER_AGE_S = 24 * 3600.0

# In the names of the unfinished entries of this process, so that another process can remove them
# if this one is killed.
_tag = ""

_logger = logging.getLogger(__name__)


class NotBuiltError(ModelError):
    """The cache lacks an entry that this process must not build."""


def tag_unfinished(tag: str) -> None:
    """Put a tag into the names of this process's unfinished entries; see `remove_unfinished`."""
    global _tag  # noqa: PLW0603 - one tag per process
    _tag = f"{tag}-"


def remove_unfinished(cache_dir: Path, tag: str) -> None:
    """Remove the unfinished entries of a process that was killed.

    Args:
        cache_dir: The cache; it need not exist.
        tag: The unique tag of the process.
    """
    for path in cache_dir.glob(f"{_UNFINISHED}{tag}-*"):
        shutil.rmtree(path, ignore_errors=True)


def find_entry(cache_dir: Path, key: str) -> Mapping[str, Any] | None:
    """Return the facts stored with an entry; None if there is no entry or it is damaged."""
    return _read_entry(cache_dir / key)


def load_or_build(
    cache_dir: Path, key: str, build: Callable[[Path], Mapping[str, Any]], *, may_build: bool = True
) -> tuple[Path, Mapping[str, Any]]:
    """Return an entry of the cache; build it if there is none or it is damaged.

    Args:
        cache_dir: The cache; made if it does not exist.
        key: The name of the entry's folder.
        build: Fills an empty folder, and returns the facts to store with it, as JSON types.
        may_build: Whether a missing entry may be built.

    Returns:
        The entry's folder and its facts.

    Raises:
        NotBuiltError: There is no entry, and it may not be built.
        ModelError: The cache cannot be written to.
    """
    place = cache_dir / key
    facts = _read_entry(place)
    if facts is not None:
        return place, facts
    if not may_build:
        raise NotBuiltError(f"cache folder {cache_dir} has no entry {key}")
    try:
        return place, _build_entry(cache_dir, place, build)
    except OSError as error:
        raise _cannot_be_used(cache_dir, error) from error


def has_entries(cache_dir: Path) -> bool:
    """Return whether the cache holds any entry, complete or damaged."""
    try:
        return any(not path.name.startswith(".") for path in cache_dir.iterdir())
    except OSError:
        return False


def check_writable(cache_dir: Path) -> None:
    """Check that the cache can take an entry, before work is done for one.

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
        digests, facts = manifest["digests"], manifest["remembered"]
        damaged = [name for name, digest in digests.items() if _digest(place / name) != digest]
        # Entries of earlier releases lack it.
        if manifest.get("remembered_digest", _digest_facts(facts)) != _digest_facts(facts):
            damaged.append(MANIFEST_NAME)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ModelError(
            f"cache entry {error.filename} cannot be read: {error.strerror}: let this user read it,"
            " or set cache_dir (--cache-dir) to another folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        damaged, facts = [MANIFEST_NAME], None
    if damaged or not isinstance(facts, dict):
        _logger.warning("rebuilding a damaged cache entry", extra={"entry": str(place)})
        return None
    return facts


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; empty if there is no file."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_facts(facts: Any) -> str:
    """Return the SHA-256 of what is stored with an entry, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _build_entry(
    cache_dir: Path, place: Path, build: Callable[[Path], Mapping[str, Any]]
) -> Mapping[str, Any]:
    cache_dir.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(cache_dir)
    folder = _make_folder(cache_dir)
    try:
        facts = dict(build(folder))
        digests = {path.name: _digest(path) for path in folder.iterdir()}
        manifest = json.dumps(
            {
                "digests": digests,
                "remembered": facts,
                "remembered_digest": _digest_facts(facts),
            },
            indent=1,
        )
        (folder / MANIFEST_NAME).write_text(manifest)
        for path in folder.iterdir():
            _flush(path)
        return _move_into_place(folder, place, facts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_folder(parent: Path) -> Path:
    """Make a folder with the permissions of the umask; those of `tempfile` are private."""
    folder = parent / f"{_UNFINISHED}{_tag}{secrets.token_hex(8)}"
    folder.mkdir()
    return folder


def _flush(path: Path) -> None:
    # Without this, a power cut may leave files of the right size full of zeros.
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _move_into_place(folder: Path, place: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        folder.rename(place)
    except OSError:
        # An entry exists: another process was faster, or the entry is damaged.
        present = _read_entry(place)
        if present is not None:
            return present
        aside = _make_folder(place.parent)
        try:
            place.rename(aside / "damaged")
            folder.rename(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return facts


def _remove_leftovers(cache_dir: Path) -> None:
    oldest = time.time() - _LEFTOVER_AGE_S
    for path in cache_dir.glob(f"{_UNFINISHED}*"):
        try:
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue  # another process removed it
