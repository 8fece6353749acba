"""Reads the credentials that a call carries, by gRPC or HTTP."""

from collections.abc import Iterable
from dataclasses import dataclass

from embedgrpc.engine.errors import UnauthenticatedError

AUTHORIZATION_KEY = "authorization"
API_KEY_KEY = "x-api-key"
_SCHEME = "bearer"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call carries.

    Attributes:
        text: A key or a token.
        may_be_token: Whether it came where tokens come, too.
    """

    text: str
    may_be_token: bool


def read_credentials(metadata: Iterable[tuple[str, str | bytes]] | None) -> Credentials | None:
    """Return the credentials of a call; None if it carries none.

    Raises:
        UnauthenticatedError: They cannot be read, or differ. The message holds nothing of them.
    """
    found: Credentials | None = None
    for key, value in metadata or ():
        if key == AUTHORIZATION_KEY:
            one = _read_authorization(value)
        elif key == API_KEY_KEY:
            one = Credentials(_text_of(value, key), may_be_token=False)
        else:
            continue
        if found is not None and found.text != one.text:
            raise _invalid("the call carries several credentials that differ: send one")
        if found is None or one.may_be_token:
            found = one
    return found


def _read_authorization(value: str | bytes) -> Credentials:
    scheme, blank, text = _text_of(value, AUTHORIZATION_KEY).partition(" ")
    if scheme.lower() != _SCHEME or not blank or not text.strip():
        raise _invalid(f"{AUTHORIZATION_KEY} must be: Bearer, a blank, and a key or a token")
    return Credentials(text.strip(), may_be_token=True)


def _text_of(value: str | bytes, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _invalid(f"{key} must be a text of ASCII")
    return value.strip()


def _invalid(message: str) -> UnauthenticatedError:
    return UnauthenticatedError(message, metadata={"label": "INVALID_CREDENTIALS"})
