"""Opens the files of a model folder: one rule for all of them.

A file must be a regular file, and lie inside the model's folder once all links are followed. A
link may lead to another place in the folder, as those of a Kubernetes volume do (`config.json` to
`..data/config.json`). The one exception is the cache of the Hugging Face Hub, which keeps each
content once, in `blobs` beside `snapshots`, and links to it.
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
# What file systems take of a name; of a path they take four times this.
_NAME_BYTES_MAX = 255
_PATH_BYTES_MAX = 1024
# How much of a name that is none stands in a message.
_SHOWN_CHARACTERS = 100
# A pipe without a writer must not block, and a terminal must not become the process's own.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def find_member(root: Path, folder: Path, name: str, *, named_by: str) -> Path:
    """Finds what a model's file names: a file or a folder.

    Args:
        root: The model's folder.
        folder: What the name is relative to.
        name: As the file has it.
        named_by: The file and key that hold the name, for messages.

    Returns:
        Where it is. It need not exist.

    Raises:
        ModelError: No file can have the name, it is absolute, has `..` in it, or leads out of the
            model's folder.
    """
    check_name(name, named_by=named_by)
    place = PurePosixPath(name)
    path = folder / place
    if "\0" in name or place.is_absolute() or ".." in place.parts or not is_inside(path, root):
        raise ModelError(f"{named_by} {name!r} leads out of the model folder {root}")
    return path


def check_name(name: str, *, named_by: str) -> None:
    """Checks that a file can have a name: file systems answer others with errors of their own.

    Args:
        name: As a file has it, with `/` between its parts.
        named_by: The file and key that hold the name, for messages.

    Raises:
        ModelError: It is too long, or no text.
    """
    try:
        longest = max((len(part.encode()) for part in PurePosixPath(name).parts), default=0)
        fits = longest <= _NAME_BYTES_MAX and len(name.encode()) <= _PATH_BYTES_MAX
    except UnicodeEncodeError:  # half of a surrogate pair
        fits = False
    if not fits:
        raise ModelError(
            f"{named_by} must name a file or a folder, of at most {_PATH_BYTES_MAX} bytes and "
            f"{_NAME_BYTES_MAX} a part, not {name[:_SHOWN_CHARACTERS]!r} of {len(name)} characters"
        )


def check_inside(path: Path, root: Path) -> None:
    """Checks that a path stays inside the model's folder when its links are followed.

    Raises:
        ModelError: It does not.
    """
    if not is_inside(path, root):
        raise ModelError(
            f"{path} leads out of the model folder {root}: copy the file there instead of the link"
        )


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path stays inside the model's folder when its links are followed."""
    try:
        root, real = root.resolve(), path.resolve()
    except (OSError, RuntimeError):
        return False  # links in a circle
    return real.is_relative_to(root) or is_cached_blob(root, path)


def is_cached_blob(folder: Path, path: Path) -> bool:
    """Tells whether a file of a snapshot is a link into the same repository's part of the cache.

    The cache keeps each content once, as a file in `blobs`, and links to it from snapshots.

    Args:
        folder: A model's folder, `REPOSITORY/snapshots/COMMIT` where it is a snapshot.
        path: A file inside it.

    Returns:
        Whether the two are laid out so, and nothing else.
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
    """Checks a file that is opened by a library, which takes a path.

    Args:
        path: The file.
        root: The model's folder.

    Raises:
        ModelError: It is missing, no regular file, or outside the folder.
    """
    open_file(path, root).close()


def open_file(path: Path, root: Path) -> BufferedReader:
    """Opens a file of a model.

    Args:
        path: The file.
        root: The model's folder.

    Returns:
        The open file; the caller closes it.

    Raises:
        ModelError: It is missing, cannot be read, is no regular file, or is outside the folder.
    """
    check_inside(path, root)
    return open_regular(path)


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file, wherever it is.

    Raises:
        ModelError: It is missing, cannot be read, or is no regular file.
    """
    try:
        # Opening a device may do something, so that it is looked at first; what is opened is
        # looked at again, since it may have been replaced in between.
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
    """Reads a file of a model.

    Args:
        path: The file.
        root: The model's folder.
        limit_bytes: The most bytes that it may have.

    Returns:
        Its content.

    Raises:
        ModelError: It is missing, cannot be read, is larger, is no regular file, or is outside
            the folder.
    """
    with open_file(path, root) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            # Room is made for all that is asked for, however little there is.
            content = file.read(size + 1) if size <= limit_bytes else b""
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if size > limit_bytes:
        raise ModelError(f"{path} has {size} bytes, more than the limit of {limit_bytes}")
    if len(content) > size:
        raise ModelError(f"{path} grows while it is read")
    return content


def hash_file(path: Path, root: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Args:
        path: The file.
        root: The model's folder.

    Raises:
        ModelError: As `open_file`.
    """
    with open_file(path, root) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
