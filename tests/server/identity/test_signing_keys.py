"""The keys of an issuer: fetched in the background, and kept while it is away."""

import asyncio
import base64
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from embedgrpc.engine.errors import BackendUnavailableError, UnauthenticatedError
from embedgrpc.server.identity import signing_keys
from embedgrpc.server.identity.signing_keys import KeySet, KeySource, fetching, parse_jwks
from embedgrpc.server.identity.tokens import TokenVerifier
from embedgrpc.server.settings.settings import Settings
from tests.authority import HOSTS, Authority
from tests.server.identity.callers import OK, bearer, by_both
from tests.server.identity.issuer import AUDIENCE, NAME, Issuer
from tests.server.service import Service, until

HOUR_S = 3600.0


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now_s


class Away:
    """An issuer that may be away."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.is_away = False
        self.fetches = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self) -> KeySet:
        """Return the keys of now."""
        self.fetches += 1
        await self.gate.wait()
        if self.is_away:
            raise aiohttp.ClientConnectionError("nobody answers")
        return parse_jwks(self.issuer.jwks())


@pytest.fixture
def clock() -> Clock:
    """The clock of everything."""
    return Clock()


@pytest.fixture
def away() -> Away:
    """An issuer of its own, which is there."""
    return Away(Issuer())


@pytest.fixture
def source(away: Away, clock: Clock) -> KeySource:
    """The keys of that issuer."""
    return KeySource(away.fetch, interval_s=300, clock=clock)


@pytest.fixture
def verifier(source: KeySource) -> TokenVerifier:
    """What checks its tokens."""
    settings = Settings(jwt_issuer=NAME, jwt_audience=AUDIENCE, jwks_url="https://issuer/keys")  # type: ignore[arg-type] # one word
    return TokenVerifier(settings, lambda: source.keys)


async def test_an_issuer_may_be_away_for_an_hour(
    away: Away,
    clock: Clock,
    source: KeySource,
    verifier: TokenVerifier,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its keys stay in use for a day, and that it is away is logged once."""
    with pytest.raises(BackendUnavailableError):
        verifier.verify(away.issuer.token())
    assert await source.refresh()
    assert verifier.verify(away.issuer.token()).caller.name == "alice"
    away.is_away = True
    for _ in range(12):
        clock.now_s += HOUR_S / 12
        assert not await source.refresh()
    assert verifier.verify(away.issuer.token(jti="another")).caller.name == "alice"
    assert [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR] == [
        "keys for tokens not fetched; the former ones stay in use for a day"
    ]
    clock.now_s += 23 * HOUR_S
    verifier.verify(away.issuer.token())
    clock.now_s += 1
    with pytest.raises(BackendUnavailableError):
        verifier.verify(away.issuer.token())
    away.is_away = False
    assert await source.refresh()
    verifier.verify(away.issuer.token())


async def test_a_key_that_is_taken_back_takes_back_its_tokens(
    away: Away, source: KeySource, verifier: TokenVerifier
) -> None:
    """Those that were checked before, too."""
    away.issuer.add("second", "ES256")
    await source.refresh()
    first, second = away.issuer.token(), away.issuer.token("second")
    verified = [verifier.verify(one) for one in (first, second)]
    del away.issuer.keys["first"]
    await source.refresh()
    with pytest.raises(UnauthenticatedError, match="unknown key"):
        verifier.verify(first)
    verifier.verify(second)
    assert [verifier.is_valid(one) for one in verified] == [False, True]


async def test_unknown_keys_do_not_flood_the_issuer(
    away: Away, clock: Clock, source: KeySource
) -> None:
    """They have the keys fetched at most every 30 seconds, and few calls wait for that."""
    await source.refresh()
    clock.now_s += 31
    away.gate.clear()
    waiting = [asyncio.create_task(source.refresh_for_unknown()) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(one.done() for one in waiting) == 100 - 64
    away.gate.set()
    await asyncio.gather(*waiting)
    assert away.fetches == 2
    for _ in range(100):
        clock.now_s += 0.29
        await source.refresh_for_unknown()
    assert away.fetches == 2
    clock.now_s += 2
    await source.refresh_for_unknown()
    assert away.fetches == 3
    # An issuer that is away is asked no more often.
    away.is_away = True
    for _ in range(100):
        clock.now_s += 0.4
        await source.refresh_for_unknown()
    assert away.fetches == 4


async def test_tokens_are_remembered_within_bounds(
    away: Away, source: KeySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only as many as there is room for, and not beyond their expiry."""
    monkeypatch.setattr("embedgrpc.server.identity.tokens._CACHED_TOKENS_MAX", 3)
    await source.refresh()
    wall = Clock()
    settings = Settings(jwt_issuer=NAME, jwt_audience=AUDIENCE, jwks_url="https://issuer/keys")  # type: ignore[arg-type] # one word
    verifier = TokenVerifier(settings, lambda: source.keys, clock=wall)
    wall.now_s = time.time()
    tokens = [away.issuer.token(jti=str(number), exp=int(wall.now_s) + 100) for number in range(5)]
    for token in tokens:
        verifier.verify(token)
    assert len(verifier._cache) == 3
    wall.now_s += 131
    with pytest.raises(UnauthenticatedError, match="has expired"):
        verifier.verify(tokens[-1])


def _jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def _public(bits: int) -> dict[str, Any]:
    algorithm: Any = jwt.get_algorithm_by_name("RS256")
    key = rsa.generate_private_key(65537, bits)
    found: dict[str, Any] = algorithm.to_jwk(key, as_dict=True)
    return found


def test_keys_that_cannot_check_tokens_are_left_out() -> None:
    """A JWKS may hold others. Of a private key only the public part is read."""
    good = {**_public(2048), "kid": "good"}
    found = parse_jwks(
        _jwks(
            {**good, "kid": "for-encryption", "use": "enc"},
            {**_public(1024), "kid": "short"},
            {"kty": "oct", "k": "c2hvcnQ", "kid": "short-secret"},
            {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "curve"},
            {"kty": "RSA", "n": "?", "e": "AQAB", "kid": "broken"},
            {"kty": ["RSA"], "kid": "odd"},
            {"kid": "nothing"},
            good,
        )
    )
    assert [one.id for one in found.keys] == ["good"]
    assert isinstance(found.keys[0].key, rsa.RSAPublicKey)
    assert found.find("good", "RS256")
    assert not found.find("good", "ES256")
    assert not found.find("good", "HS256")


def test_a_shared_secret_must_be_asked_for() -> None:
    """A secret of the file checks tokens only where the setting names its algorithm."""
    secret = bytes(range(32))
    encoded = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
    keys = parse_jwks(_jwks({"kty": "oct", "k": encoded, "kid": "shared"}))
    claims = {"iss": NAME, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 60}
    token = jwt.encode(claims, secret, "HS256", {"kid": "shared"})
    asked: dict[str, Any] = {"jwt_issuer": NAME, "jwt_audience": AUDIENCE, "jwks_file": "x"}
    with pytest.raises(UnauthenticatedError, match="another algorithm"):
        TokenVerifier(Settings(**asked), lambda: keys).verify(token)
    verifier = TokenVerifier(Settings(**asked, jwt_algorithms=("HS256",)), lambda: keys)
    assert verifier.verify(token).caller.name == "alice"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is not JSON"),
        (b"[" * 5000, "it is not JSON"),
        (b"[]", "it has no list of keys"),
        (b'{"keys": {}}', "it has no list of keys"),
        (b'{"keys": []}', "none of its 0 keys"),
        (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "none of its 1 keys"),
    ],
)
def test_what_is_no_jwks_is_refused(content: bytes, problem: str) -> None:
    """So that the former keys stay."""
    with pytest.raises(ValueError, match=problem):
        parse_jwks(content)


@asynccontextmanager
async def publishing(authority: Authority, answer: Any, port: int = 0) -> AsyncIterator[str]:
    """Serve an issuer's keys over HTTPS; yield the URL."""
    pair = authority.issue("issuer", *HOSTS)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
    await site.start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}/keys"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (lambda: web.Response(status=500), "status 500"),
        (lambda: web.Response(status=302, headers={"location": "http://127.0.0.1/"}), "status 302"),
        (lambda: web.Response(body=b"x" * 65537), "more than 65536 bytes"),
        (lambda: web.Response(body=b"garbage"), "it is not JSON"),
    ],
)
async def test_answers_of_an_issuer_that_cannot_be_used(
    tmp_path: Path, response: Callable[[], web.Response], problem: str
) -> None:
    """Redirects are not followed, and no more is read than keys need."""
    authority = Authority(tmp_path)

    async def answer(_: Any) -> web.Response:
        return response()

    async with publishing(authority, answer) as url:
        with pytest.raises(ValueError, match=problem):
            await fetching(url, str(authority.file))()
        with pytest.raises(aiohttp.ClientConnectorError):
            await fetching(url, "")()


async def test_a_server_gets_the_keys_of_its_issuer(
    serve: Callable[..., Awaitable[Service]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts without them, and takes a token with a new key at once."""
    monkeypatch.setattr(signing_keys, "_FORCED_INTERVAL_S", 0.0)
    monkeypatch.setattr(signing_keys, "_RETRY_S", (0.02, 0.02))
    authority, issuer = Authority(tmp_path), Issuer()
    is_up = False

    async def answer(_: Any) -> web.Response:
        return web.Response(body=issuer.jwks()) if is_up else web.Response(status=503)

    async with publishing(authority, answer) as url:
        service = await serve(
            http_address="127.0.0.1:0",
            jwt_issuer=NAME,
            jwt_audience=AUDIENCE,
            jwks_url=url,
            jwks_ca_file=str(authority.file),
        )
        refused = await by_both(service, bearer(issuer.token()))
        assert refused.status == "UNAVAILABLE"
        is_up = True
        authenticator = service.server.open_calls.authenticator
        assert authenticator is not None
        source = authenticator._source
        assert source is not None
        await until(lambda: source.keys)
        assert await by_both(service, bearer(issuer.token())) == OK
        # The next fetch in the background is minutes away.
        issuer.add("new", "ES256")
        assert await by_both(service, bearer(issuer.token("new"))) == OK
