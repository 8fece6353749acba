"""API keys: a file names their callers and holds their hashes."""

import datetime as dt
import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from embedgrpc.server.caller import Caller, Proof
from embedgrpc.server.identity.rights import Rights, check_caller_name
from embedgrpc.server.identity.toml_tables import read_tables

_PREFIX = "eg_"
_KEY_BYTES = 32
_HASH = re.compile(r"sha256:([0-9A-Fa-f]{64})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that the file knows.

    Attributes:
        caller: Whose key it is.
        expires_at: When it expires, in seconds since 1970; infinity for never.
    """

    caller: Caller
    expires_at: float


# By the SHA-256 of a key. Keys are random, so that a fast hash is enough; and who guesses keys
# cannot choose their hashes, so that the time of a look-up tells nothing.
ApiKeys = Mapping[bytes, ApiKey]


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def make_key() -> tuple[str, str]:
    """Return a new random key, and how the file writes its hash."""
    key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return key, f"sha256:{digest_of(key).hex()}"


class KeyTable(Rights):
    """A table `[[keys]]` of the file."""

    name: str
    key: str
    expires: Any = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        return check_caller_name(value)

    @field_validator("key")
    @classmethod
    def _check_key(cls, value: str) -> str:
        match = _HASH.fullmatch(value)
        if match is None:
            raise ValueError(
                "must be sha256: and 64 hexadecimal digits, as `embedgrpc key new` prints it; the"
                " key itself does not belong here"
            )
        return match[1].lower()

    @field_validator("expires")
    @classmethod
    def _check_expires(cls, value: Any) -> Any:
        if value is None or (isinstance(value, dt.datetime) and value.tzinfo is not None):
            return value
        if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
            return dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
        raise ValueError("must be a date, or a time with a zone such as 2027-01-31T12:00:00Z")

    def read(self) -> ApiKey:
        """Return the key."""
        caller = self.caller(self.name, Proof.API_KEY)
        return ApiKey(caller, self.expires.timestamp() if self.expires else math.inf)


def parse_api_keys(content: bytes) -> ApiKeys:
    """Read a file of keys.

    Raises:
        ValueError: It cannot be used. The message holds no key and no hash.
    """
    keys: dict[bytes, ApiKey] = {}
    for index, table in enumerate(read_tables(content, "keys", KeyTable)):
        digest = bytes.fromhex(table.key)
        if digest in keys:
            raise ValueError(f"keys[{index}].key: an earlier table has the same key")
        keys[digest] = table.read()
    return keys
