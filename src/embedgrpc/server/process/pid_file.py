"""The file with the number of the server's process, by which commands find it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NUMBER_BYTES_MAX = 32


class PidFileError(Exception):
    """The file cannot be used; the message says why."""


@contextmanager
def pid_file(path: Path) -> Iterator[None]:
    """Hold a file with the number of this process until the block ends, and then remove it.

    A lock shows that the process lives, so that a file that was left behind misleads nobody.

    Raises:
        PidFileError: Another server holds it, or it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise PidFileError(f"pid_file {path}: cannot be written: {error.strerror}") from None
    try:
        if not _lock(descriptor):
            raise PidFileError(f"pid_file {path}: another server uses it")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            # While it is locked: else this could remove the file of the next server.
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def find_process(path: Path) -> int:
    """Return the number of the process that holds a file.

    Raises:
        PidFileError: None does.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise PidFileError(f"pid_file {path}: there is no such file; no server runs") from None
    except OSError as error:
        raise PidFileError(f"pid_file {path}: cannot be read: {error.strerror}") from None
    try:
        if _lock(descriptor):
            raise PidFileError(f"pid_file {path}: its server does not run any more")
        text = os.read(descriptor, _NUMBER_BYTES_MAX).strip()
    finally:
        os.close(descriptor)
    if not text.isdigit():
        raise PidFileError(f"pid_file {path}: it does not hold the number of a process")
    return int(text)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
