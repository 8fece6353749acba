"""Opens the files of a model folder, with the same checks for all of them.

A file must be a regular file inside the model's folder after following all links. Links inside the
folder are allowed; Kubernetes volumes use them (`config.json` to `..data/config.json`). The only
exception is the cache of the Hugging Face Hub, whose snapshots link to files in `blobs`.
"""

import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path, PurePosixPath

from embedgrpc.models.errors import ModelError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
# The limit of file systems for a name. Their limit for a path is four times ours.
_NAME_BYTES_MAX = 255
_PATH_BYTES_MAX = 1024
# The part of an invalid name that messages show.
_SHOWN_CHARACTERS = 100
# A pipe without a writer must not block; a terminal must not become the controlling terminal.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def find_member(root: Path, folder: Path, name: str, *, named_by: str) -> Path:
    """Return the path of a file or folder that a model's file names. It need not exist.

    Args:
        root: The model's folder.
        folder: The folder that the name is relative to.
        name: The name.
        named_by: The file and key that contain the name, for messages.

    Raises:
        ModelError: The name is invalid, absolute, contains `..`, or leads out of the model's
            folder.
    """
    check_name(name, named_by=named_by)
    place = PurePosixPath(name)
    path = folder / place
    if "\0" in name or place.is_absolute() or ".." in place.parts or not _is_inside(path, root):
        raise ModelError(f"{named_by} {name!r} leads out of the model folder {root}")
    return path


def check_name(name: str, *, named_by: str) -> None:
    """Check that file systems accept a name.

    Args:
        name: With `/` between its parts.
        named_by: The file and key that contain the name, for messages.

    Raises:
        ModelError: It is too long, or cannot be encoded.
    """
    try:
        longest = max((len(part.encode()) for part in PurePosixPath(name).parts), default=0)
        fits = longest <= _NAME_BYTES_MAX and len(name.encode()) <= _PATH_BYTES_MAX
    except UnicodeEncodeError:  # half of a surrogate pair
        fits = False
    if not fits:
        raise ModelError(
            f"{named_by} must name a file or a folder, with at most {_PATH_BYTES_MAX} bytes and "
            f"{_NAME_BYTES_MAX} per part, not {name[:_SHOWN_CHARACTERS]!r} ({len(name)} characters)"
        )


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a path is inside the model's folder after following all links."""
    try:
        root, real = root.resolve(), path.resolve()
    except (OSError, RuntimeError):
        return False  # a loop of links
    return real.is_relative_to(root) or _is_cached_blob(root, path)


def _is_cached_blob(folder: Path, path: Path) -> bool:
    """Whether a file is a link from a snapshot of the Hub's cache to its repository's blobs.

    Args:
        folder: The model's folder: `REPOSITORY/snapshots/COMMIT` if it is a snapshot.
        path: A file inside it.
    """
    folder = folder.resolve()
    snapshots = folder.parent
    in_cache = snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")
    return (
        in_cache
        and path.parent.resolve().is_relative_to(folder)
        and path.resolve().parent == snapshots.parent / "blobs"
    )


def check_file(path: Path, root: Path) -> None:
    """Check a file in the model folder `root` before a library opens its path.

    Raises:
        ModelError: See `open_file`.
    """
    open_file(path, root).close()


def open_file(path: Path, root: Path) -> BufferedReader:
    """Open a file in the model folder `root`. The caller closes it.

    Raises:
        ModelError: It is missing, unreadable, not a regular file, or outside of the folder.
    """
    if not _is_inside(path, root):
        raise ModelError(
            f"{path} leads out of the model folder {root}: replace the link by a copy of the file"
        )
    return open_regular(path)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, in any folder.

    Raises:
        ModelError: It is missing, unreadable or not a regular file.
    """
    try:
        # Opening a device may have effects, so check first. Check again after opening, because
        # the file may have been replaced.
        _check_regular(path, path.stat())
        descriptor = os.open(path, _FLAGS)
        try:
            _check_regular(path, os.fstat(descriptor))
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ModelError(f"{path} is {kind}, not a regular file")


def read_file(path: Path, root: Path, *, limit_bytes: int) -> bytes:
    """Read a file in the model folder `root`.

    Raises:
        ModelError: It is larger than `limit_bytes`, or as for `open_file`.
    """
    with open_file(path, root) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            # One byte more than its size shows growth. read() allocates all that it is asked for.
            content = file.read(size + 1) if size <= limit_bytes else b""
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if size > limit_bytes:
        raise ModelError(f"{path} has {size} bytes, more than the limit of {limit_bytes}")
    if len(content) > size:
        raise ModelError(f"{path} grew while it was read")
    return content


def hash_file(path: Path, root: Path) -> str:
    """Return the SHA-256 of a file in the model folder `root`, in hexadecimal.

    Raises:
        ModelError: See `open_file`.
    """
    with open_file(path, root) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
