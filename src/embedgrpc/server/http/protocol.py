"""The rules of HTTP that aiohttp leaves open.

Source: RFC 9110 and RFC 9112.
"""

from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, web

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.contract.names import show_name
from embedgrpc.server.http.failures import HttpError

VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})
# JSON is UTF-8 (RFC 8259), of which ASCII is a part. Python's clients write it either way.
_CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


def check_protocol(request: web.BaseRequest) -> None:
    """Refuse a request whose meaning a proxy may see differently, or that is for a proxy.

    Raises:
        HttpError: It has another version, transfer coding or method than those of HTTP/1.
    """
    if request.version not in VERSIONS:
        raise HttpError(505, InvalidRequestError("the version must be HTTP/1.1 or HTTP/1.0"))
    if request.method == "CONNECT":
        raise HttpError(501, InvalidRequestError("this server is no proxy: CONNECT has no use"))
    coding = request.headers.get("transfer-encoding")
    if coding is None:
        return
    if request.version == HttpVersion10:
        raise HttpError(400, InvalidRequestError("HTTP/1.0 has no header transfer-encoding"))
    if coding.strip().lower() != "chunked":
        raise HttpError(
            501,
            InvalidRequestError("header transfer-encoding may only be chunked; do not compress"),
        )


def answer_in_http_1_1(request: web.BaseRequest) -> None:
    """Write the answer in HTTP/1.1, and not in the version of the request as aiohttp does."""
    request._cache["version"] = HttpVersion11  # noqa: SLF001 - aiohttp has no other way


def check_media_type(request: web.BaseRequest) -> None:
    """Refuse a body that is no plain JSON.

    Raises:
        HttpError: It is of another type, or compressed: a small body could become a huge one.
    """
    kind = request.content_type
    if request.body_exists and kind != "application/json" and not kind.endswith("+json"):
        raise HttpError(
            415, InvalidRequestError("the body must be JSON: set content-type: application/json")
        )
    charset = request.charset
    if charset is not None and charset.lower() not in _CHARSETS:
        raise HttpError(
            415, InvalidRequestError(f"JSON is UTF-8; the content-type says {show_name(charset)}")
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, InvalidRequestError("the body must not be compressed"))
