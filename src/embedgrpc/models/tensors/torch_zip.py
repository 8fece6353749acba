"""Reads the zip files that torch writes: whole, not compressed, and small besides their content.

`zipfile` makes an object of every entry of a file's directory before anybody can ask how many
there are, and reads files whose members overlap. So the directory is measured before it is read.
"""

import os
import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import open_regular

_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_WIDE_PLACE = struct.Struct("<4sLQL")
_WIDE_PLACE_SIGNATURE = b"PK\x06\x07"
_WIDE_END = struct.Struct("<4sQ2H2L4Q")
_WIDE_END_SIGNATURE = b"PK\x06\x06"
# What precedes a member's name, its padding and its content.
_MEMBER_HEADER_BYTES = 30
# An entry takes about 80 bytes here and ten times that in memory; there is one for each storage.
_DIRECTORY_BYTES_MAX = 2 << 20
_ENCRYPTED_FLAG = 1
# What zipfile raises on broken headers, besides its own error.
_DAMAGES = (
    zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
    struct.error,
)  # fmt: skip


class TorchZip:
    """An open zip file. For a `with` statement.

    Attributes:
        path: The file, to be named in messages.
        size: Its bytes.
        sizes: The bytes of each member by name; together no more than `size`.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file and checks its directory.

        Raises:
            ModelError: It is damaged or cut short, or is no zip file as torch writes it.
        """
        self.path = path
        file = open_regular(path)
        try:
            self.size = os.fstat(file.fileno()).st_size
            directory_place = self._check_end(file)
            self._archive = zipfile.ZipFile(file)
            self._check_members(directory_place)
        except BaseException as error:
            file.close()
            if isinstance(error, _DAMAGES):
                raise self._damaged() from error
            raise
        self._file = file
        self.sizes = {member.filename: member.file_size for member in self._archive.infolist()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._archive.close()
        self._file.close()

    def read(self, name: str) -> bytes:
        """Reads a member, whose checksum must be right.

        Args:
            name: One of `sizes`.

        Raises:
            ModelError: It is damaged.
        """
        try:
            return self._archive.read(name)
        except _DAMAGES as error:
            raise self._damaged() from error

    def _check_end(self, file: BinaryIO) -> int:
        """Checks the directory's size; returns where the directory begins."""
        place = self.size - _END.size
        file.seek(max(place, 0))
        signature, disk, _, _, _, size, begin, comment_size = _END.unpack(file.read(_END.size))
        if signature != _END_SIGNATURE or comment_size or disk:
            raise self._damaged()
        if place >= _WIDE_PLACE.size:
            file.seek(place - _WIDE_PLACE.size)
            signature, _, wide_end, _ = _WIDE_PLACE.unpack(file.read(_WIDE_PLACE.size))
            if signature == _WIDE_PLACE_SIGNATURE:
                place -= _WIDE_PLACE.size + _WIDE_END.size
                if wide_end != place:
                    raise self._damaged()
                file.seek(place)
                signature, *_, size, begin = _WIDE_END.unpack(file.read(_WIDE_END.size))
                if signature != _WIDE_END_SIGNATURE:
                    raise self._damaged()
        if begin + size != place:
            raise self._damaged()
        if size > _DIRECTORY_BYTES_MAX:
            raise ModelError(
                f"{self.path}: its directory has {size} bytes; the limit is {_DIRECTORY_BYTES_MAX}"
            )
        return int(begin)

    def _check_members(self, directory_place: int) -> None:
        members = sorted(self._archive.infolist(), key=lambda member: member.header_offset)
        for member in members:
            plain = member.compress_type == zipfile.ZIP_STORED
            plain = plain and member.compress_size == member.file_size
            if not plain or member.flag_bits & _ENCRYPTED_FLAG:
                raise ModelError(
                    f"{self.path}: {member.filename!r} is compressed, as torch never does"
                )
        if sum(member.file_size for member in members) > self.size:
            raise ModelError(
                f"{self.path}: its members claim more bytes than the {self.size} it has"
            )
        known: set[str] = set()
        end = directory_place
        for member in reversed(members):
            if member.filename in known:
                raise ModelError(f"{self.path} has two members of the name {member.filename!r}")
            known.add(member.filename)
            head_size = _MEMBER_HEADER_BYTES + len(member.orig_filename)
            if member.header_offset + head_size + member.file_size > end:
                raise ModelError(f"{self.path}: {member.filename!r} overlaps another member")
            end = member.header_offset

    def _damaged(self) -> ModelError:
        return ModelError(f"{self.path} is damaged or cut short: it is no whole zip file")
