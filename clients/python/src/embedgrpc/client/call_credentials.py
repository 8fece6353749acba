"""The key or token that a client sends with every call."""

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

Token: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]
Metadata: TypeAlias = tuple[tuple[str, str], ...]

# What a header may hold.
_PRINTABLE: Final = re.compile(r"[!-~]+")


class CallCredentials:
    """An API key, or a token that may be renewed.

    Args:
        api_key: The key; "" for none.
        token: The token, or a function that returns the token of now; "" for none.

    Raises:
        ValueError: There are both, or one cannot be sent.
    """

    def __init__(self, api_key: str, token: Token) -> None:
        if api_key and token:
            raise ValueError("give either api_key or token")
        self._token = token
        self._metadata: Metadata = ()
        if api_key:
            self._metadata = (("x-api-key", _checked(api_key, "api_key")),)
        elif isinstance(token, str) and token:
            self._metadata = _of_token(token)

    @property
    def exist(self) -> bool:
        """Whether there are any."""
        return bool(self._metadata or self._token)

    def metadata(self) -> Metadata:
        """Return what to send with a call.

        Raises:
            TypeError: The function returned no str.
            ValueError: It returned what cannot be sent.
        """
        return _of_token(self._token()) if callable(self._token) else self._metadata

    async def wait_for_metadata(self) -> Metadata:
        """Return what to send with a call; the function may be asynchronous.

        Raises:
            TypeError: The function returned no str.
            ValueError: It returned what cannot be sent.
        """
        if not callable(self._token):
            return self._metadata
        token = self._token()
        return _of_token(await token if inspect.isawaitable(token) else token)


def _of_token(token: object) -> Metadata:
    if not isinstance(token, str):
        if inspect.iscoroutine(token):
            token.close()  # else Python warns that nobody awaited it
        raise TypeError(f"token must return a str, not {type(token).__name__}")
    return (("authorization", f"Bearer {_checked(token, 'token')}"),)


def _checked(text: str, name: str) -> str:
    """Return a key or a token; the error of one that cannot be sent does not show it."""
    if not _PRINTABLE.fullmatch(text):
        raise ValueError(f"{name} must be printable ASCII without blanks")
    return text
