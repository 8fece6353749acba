"""Browsers learn which web pages may call the server."""

import pytest

from embedgrpc.server.http.headers import EXPOSED_HEADERS
from tests.server.conftest import Serve
from tests.server.http.http_client import HttpClient, Reply

ORIGIN = "https://app.example.com"
BODY = {"input": "a text"}
HEADERS = "authorization,content-type,x-stainless-lang"


async def _preflight(
    http: HttpClient, path: str = "/v1/embeddings", *, origin: str = ORIGIN, **headers: str
) -> Reply:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": HEADERS}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.send("OPTIONS", path, headers={"origin": origin} | asked | given)


def _allowed(reply: Reply) -> dict[str, str]:
    """Return what a reply says to browsers."""
    return {
        name.lower(): value
        for name, value in reply.headers.items()
        if name.lower().startswith("access-control-") or name.lower() == "vary"
    }


async def test_without_origins_nothing_is_allowed(serve: Serve) -> None:
    """By default a preflight fails, and no response has a header for browsers."""
    http = HttpClient(await serve(http_address="127.0.0.1:0"))
    reply = await _preflight(http)
    assert (reply.status, _allowed(reply)) == (405, {})
    reply = await http.post("/v1/embeddings", BODY, origin=ORIGIN)
    assert (reply.status, _allowed(reply)) == (200, {})


async def test_a_listed_origin(serve: Serve) -> None:
    """Its pages may send what a route takes, and read results, errors and their headers."""
    origins = (ORIGIN, "http://localhost:3000")
    service = await serve(http_address="127.0.0.1:0", http_allowed_origins=origins)
    http = HttpClient(service)
    read = {
        "vary": "Origin",
        "access-control-allow-origin": ORIGIN,
        "access-control-expose-headers": ", ".join(EXPOSED_HEADERS),
    }
    reply = await _preflight(http)
    assert (reply.status, reply.body) == (204, b"")
    assert _allowed(reply) == read | {
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": HEADERS,
        "access-control-max-age": "600",
    }
    assert _allowed(await http.post("/v1/embeddings", BODY, origin=ORIGIN)) == read
    refused = await http.post("/v1/embeddings", {}, origin=ORIGIN)
    assert (refused.status, _allowed(refused)) == (400, read)
    other = await _preflight(http, origin="http://localhost:3000")
    assert _allowed(other)["access-control-allow-origin"] == "http://localhost:3000"


@pytest.mark.parametrize("origin", ["https://example.com", "null", f"{ORIGIN}.evil.example"])
async def test_another_origin(serve: Serve, origin: str) -> None:
    """It gets no permission, and a cache learns that others may."""
    service = await serve(http_address="127.0.0.1:0", http_allowed_origins=(ORIGIN,))
    http = HttpClient(service)
    assert _allowed(await _preflight(http, origin=origin)) == {"vary": "Origin"}
    assert _allowed(await http.post("/v1/embeddings", BODY, origin=origin)) == {"vary": "Origin"}
    # Programs that are no browsers send no origin.
    assert _allowed(await http.post("/v1/embeddings", BODY)) == {"vary": "Origin"}


async def test_all_origins(serve: Serve) -> None:
    """Every page may call, without credentials."""
    service = await serve(http_address="127.0.0.1:0", http_allowed_origins=("*",))
    http = HttpClient(service)
    for reply in (
        await _preflight(http, origin="null"),
        await http.post("/v1/embeddings", BODY, origin="https://example.com"),
    ):
        allowed = _allowed(reply)
        assert allowed["access-control-allow-origin"] == "*"
        assert "vary" not in allowed
        assert "access-control-allow-credentials" not in allowed


async def test_preflights_of_what_is_not_there(serve: Serve) -> None:
    """A path or a method that is not there, or names that are none, get no permission."""
    service = await serve(http_address="127.0.0.1:0", http_allowed_origins=("*",))
    http = HttpClient(service)
    missing = await _preflight(http, "/nothing")
    assert missing.status == 404
    wrong = await _preflight(http, access_control_request_method="DELETE")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    for names in ("a b", "a, b;", "x" * 3000):
        reply = await _preflight(http, access_control_request_headers=names)
        assert reply.status == 204
        assert "access-control-allow-headers" not in _allowed(reply)
    # No preflight: it asks for no method.
    plain = await http.send("OPTIONS", "/v1/embeddings", headers={"origin": ORIGIN})
    assert plain.status == 405


async def test_a_page_cannot_send_what_needs_no_preflight(serve: Serve) -> None:
    """A form of another site can send only plain text, which is refused unread."""
    service = await serve(http_address="127.0.0.1:0", http_allowed_origins=(ORIGIN,))
    reply = await HttpClient(service).post(
        "/v1/embeddings", BODY, content_type="text/plain", origin="https://example.com"
    )
    assert reply.status == 415
