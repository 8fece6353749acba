"""Reads the zip files that torch writes: not compressed, with a small directory.

`zipfile` creates an object for every entry before the caller can check their number, and accepts
members that overlap. So the size of the directory is checked before `zipfile` reads it.
"""

import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, Self

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import open_regular

_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_WIDE_PLACE = struct.Struct("<4sLQL")
_WIDE_PLACE_SIGNATURE = b"PK\x06\x07"
_WIDE_END = struct.Struct("<4sQ2H2L4Q")
_WIDE_END_SIGNATURE = b"PK\x06\x06"
# The size of a member's header without its name and padding.
_MEMBER_HEADER_BYTES = 30
# An entry takes about 80 bytes, and ten times that in memory. There is one per storage.
_DIRECTORY_BYTES_MAX = 2 << 20
_ENCRYPTED_FLAG = 1
# The errors of zipfile on broken headers.
_DAMAGES = (
    zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
    struct.error,
)  # fmt: skip


class TorchZip:
    """An open zip file, for a `with` statement.

    Attributes:
        size: The bytes of the file.
        sizes: The bytes of each member by name; together at most `size`.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check its directory.

        Raises:
            ModelError: It is damaged, cut short, or not a zip file from torch.
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._archive.close()
        self._file.close()

    def read(self, name: str) -> bytes:
        """Read one of the members, and check its checksum.

        Raises:
            ModelError: It is damaged.
        """
        try:
            return self._archive.read(name)
        except _DAMAGES as error:
            raise self._damaged() from error

    def _check_end(self, file: BinaryIO) -> int:
        """Check the size of the directory, and return its offset."""
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
                    f"{self.path}: {member.filename!r} is compressed; torch does not compress"
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
        return ModelError(f"{self.path} is damaged or cut short: it is not a complete zip file")
