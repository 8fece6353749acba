"""Says to browsers which web pages may call the server.

No credentials are allowed: the server knows no cookies, and a page sets the header `authorization`
itself.

Source: the Fetch standard, "CORS protocol".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from embedgrpc.server.http.headers import EXPOSED_HEADERS

ANY_ORIGIN: Final = "*"
# How long a browser may remember what is allowed; Chromium takes no more than 7200.
_MAX_AGE_S: Final = 600
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:, ?[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_HEADER_NAMES_MAX: Final = 2048
_REQUESTED_METHOD: Final = "access-control-request-method"
_REQUESTED_HEADERS: Final = "access-control-request-headers"


class Cors:
    """The rules for web pages of other origins.

    Args:
        origins: Those that are allowed, such as `https://example.com`; or only `*`, for all.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)
        self._any = ANY_ORIGIN in self._origins
        self._exposed = ", ".join(EXPOSED_HEADERS)

    def headers(self, request: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of the response to a request with these headers."""
        # A cache must not give the response for one origin to another one.
        headers = {} if self._any else {"vary": "Origin"}
        origin = request.get("origin")
        if origin is not None and (self._any or origin in self._origins):
            headers |= {
                "access-control-allow-origin": ANY_ORIGIN if self._any else origin,
                "access-control-expose-headers": self._exposed,
            }
        return headers

    def preflight_headers(
        self, request: Mapping[str, str], methods: Sequence[str]
    ) -> dict[str, str]:
        """Return what is allowed at a path, beside `headers`; {} if the origin is not allowed.

        Args:
            request: The headers of the preflight.
            methods: The methods of the path.
        """
        if not (self._any or request.get("origin") in self._origins):
            return {}
        headers = {
            "access-control-allow-methods": ", ".join(methods),
            "access-control-max-age": str(_MAX_AGE_S),
        }
        # The SDKs send headers of their own. They mean nothing to this server.
        names = request.get(_REQUESTED_HEADERS, "")
        if len(names) <= _HEADER_NAMES_MAX and _HEADER_NAMES.fullmatch(names):
            headers["access-control-allow-headers"] = names
        return headers


def requested_method(method: str, request: Mapping[str, str]) -> str | None:
    """Return the method that a preflight asks for; None if the request is no preflight."""
    return request.get(_REQUESTED_METHOD) if method == "OPTIONS" and "origin" in request else None
