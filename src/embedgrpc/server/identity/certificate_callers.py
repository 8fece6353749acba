"""Callers by their certificates: a file says whose a SPIFFE id is.

Source: the SPIFFE specifications "SPIFFE-ID" and "X.509-SVID".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import field_validator

from embedgrpc.server.caller import Caller, Proof
from embedgrpc.server.identity.rights import Rights, check_caller_name
from embedgrpc.server.identity.toml_tables import read_tables

# A trust domain, and the segments of a path; `*` stands for one segment or a part of it, and `**`
# for any number of them.
_PATTERN = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/[A-Za-z0-9._*-]+)+")
_PATTERN_CHARACTERS_MAX = 2048


@dataclass(frozen=True, slots=True)
class CertificateCaller:
    """A row of the file.

    Attributes:
        uri: Matches the ids that it is for.
        name: The caller's name; empty for the id itself.
        caller: The caller, but for its name.
    """

    uri: re.Pattern[str]
    name: str
    caller: Caller

    def named(self, uri: str) -> Caller:
        """Return the caller that a certificate with an id belongs to."""
        one = self.caller
        return Caller(self.name or uri, one.proof, one.scopes, one.services, one.models, one.limits)


class CertificateTable(Rights):
    """A table `[[callers]]` of the file."""

    uri: str
    name: str = ""

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        return check_caller_name(value) if value else value

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, value: str) -> str:
        if len(value) > _PATTERN_CHARACTERS_MAX or not _PATTERN.fullmatch(value):
            raise ValueError(
                "must be a SPIFFE id such as spiffe://example.org/ns/search/sa/indexer, with * for"
                " any part of a segment of its path, or ** for any segments"
            )
        return value

    def read(self) -> CertificateCaller:
        """Return the row."""
        parts = (
            {"*": "[^/]+", "**": ".+"}.get(part) or re.escape(part)
            for part in re.split(r"(\*\*|\*)", self.uri)
        )
        caller = self.caller(self.name, Proof.CERTIFICATE)
        return CertificateCaller(re.compile("".join(parts)), self.name, caller)


def parse_certificate_callers(content: bytes) -> Sequence[CertificateCaller]:
    """Read a file of certificates' callers.

    Raises:
        ValueError: It cannot be used.
    """
    return tuple(table.read() for table in read_tables(content, "callers", CertificateTable))


def find_certificate_caller(rows: Sequence[CertificateCaller], uri: str) -> Caller | None:
    """Return the caller of a SPIFFE id, by the first row that matches; None without one."""
    for row in rows:
        if row.uri.fullmatch(uri):
            return row.named(uri)
    return None
