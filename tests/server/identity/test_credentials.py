"""Right and wrong credentials, over gRPC and HTTP alike."""

import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from embedgrpc.server.caller import Caller, CallerLimits, Proof, Scope
from embedgrpc.server.caller import Service as Allowed
from embedgrpc.server.calls.open_call import OpenCall
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.tei.v1 import tei_pb2, tei_pb2_grpc
from embedgrpc.v1 import model_service_pb2
from tests.server.http.http_client import HttpClient
from tests.server.identity.callers import (
    OK,
    KeyFile,
    bearer,
    by_both,
    by_grpc,
    by_http,
    reloaded,
)
from tests.server.identity.issuer import AUDIENCE, NAME, Issuer
from tests.server.service import CROSS, EMBED, Service, serving, settings_for, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = ("UNAUTHENTICATED", "INVALID_CREDENTIALS")
EXPIRED = ("UNAUTHENTICATED", "EXPIRED_CREDENTIALS")
MISSING = ("UNAUTHENTICATED", "NO_CREDENTIALS")
DENIED = ("PERMISSION_DENIED", "MODEL_DENIED")
SECOND = ModelSettings(id="org/second", source=EMBED.source, aliases=("other",))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    """The file of keys, to which a test adds its own."""
    return KeyFile(tmp_path_factory.mktemp("keys"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    cache_dir: Path,
    keys: KeyFile,
    issuer: Issuer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Service]:
    """A server that takes keys and tokens, with three models."""
    jwks = tmp_path_factory.mktemp("jwks") / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    settings = settings_for(
        EMBED,
        SECOND,
        CROSS,
        cache_dir=cache_dir,
        http_address="127.0.0.1:0",
        tei_model="embed",
        kserve=True,
        jwt_issuer=NAME,
        jwt_audience=AUDIENCE,
        jwks_file=str(jwks),
        **keys.settings,
    )
    async with serving(settings) as one:
        yield one


async def added(service: Service, keys: KeyFile, *lines: str, name: str = "one") -> str:
    """Add a key, and wait until the server takes it."""
    key = keys.add(name, *lines)
    await changed(service)
    return key


async def changed(service: Service) -> None:
    """Wait until the server has read the file again."""
    authenticator = service.server.open_calls.authenticator
    assert authenticator is not None
    authenticator.reload()


async def callers_of(service: Service, *metadata: tuple[str, str]) -> list[Caller]:
    """Who the server takes for the caller, over gRPC and HTTP."""
    seen: list[Caller] = []

    def observe(call: OpenCall) -> None:
        seen.append(call.caller)

    # A call ends a moment after its answer: those of earlier tests are not to be seen.
    await until(lambda: not len(service.server.open_calls))
    observers = service.server.open_calls.observers
    observers.append(observe)
    try:
        assert await by_both(service, *metadata) == OK
        await until(lambda: len(seen) == 2)
    finally:
        observers.remove(observe)
    return seen


async def test_a_key_names_its_caller(service: Service, keys: KeyFile) -> None:
    """However it is sent. The caller has the limits and scopes of the file."""
    key = await added(
        service,
        keys,
        'services = ["embed", "models"]',
        'models = ["embed", "org/*"]',
        'scopes = ["metrics"]',
        "limits = { requests_per_s = 1000, tokens_per_min = 1_000_000, max_calls = 300 }",
        name="team/search",
    )
    expected = Caller(
        "team/search",
        Proof.API_KEY,
        frozenset({Scope.METRICS}),
        frozenset({Allowed.EMBED, Allowed.MODELS}),
        ("embed", "org/*"),
        CallerLimits(requests_per_s=1000, tokens_per_min=1_000_000, max_calls=300),
    )
    for metadata in (
        [("authorization", f"Bearer {key}")],
        [("authorization", f"bearer  {key} ")],
        [("x-api-key", key)],
        [("x-api-key", key), ("authorization", f"Bearer {key}")],
    ):
        assert await callers_of(service, *metadata) == [expected, expected]


@pytest.mark.parametrize(
    ("metadata", "expected", "problem"),
    [
        ([], MISSING, "carries no credentials"),
        ([("authorization", "Bearer eg_unknown")], INVALID, "not a known API key or a token"),
        ([("x-api-key", "eg_unknown")], INVALID, "the API key is unknown"),
        ([("authorization", "Basic b25lOnR3bw==")], INVALID, "authorization must be: Bearer"),
        ([("authorization", "Bearer")], INVALID, "authorization must be: Bearer"),
        ([("authorization", "eg_unknown")], INVALID, "authorization must be: Bearer"),
        ([("x-api-key", "one"), ("x-api-key", "two")], INVALID, "several credentials"),
        ([("x-api-key", "one"), ("authorization", "Bearer two")], INVALID, "several credentials"),
        ([("x-api-key", "a.b.c")], INVALID, "the API key is unknown"),
        ([("authorization", "Bearer a.b.c")], INVALID, "the token is malformed"),
        ([("authorization", f"Bearer {'.' * 2}")], INVALID, "the token is malformed"),
    ],
)
async def test_wrong_credentials_are_refused(
    service: Service,
    metadata: list[tuple[str, str]],
    expected: tuple[str, str],
    problem: str,
) -> None:
    """The message says what is wrong, and shows none of them."""
    answer = await by_both(service, *metadata)
    assert answer == expected
    assert problem in answer.message
    assert not [value for _, value in metadata if len(value) > 6 and value in answer.message]


async def test_a_key_expires(service: Service, keys: KeyFile) -> None:
    """At its time, or at the beginning of its day in UTC."""
    for expiry, expected in (
        ("2020-01-31", EXPIRED),
        ("2020-01-31T12:00:00+02:00", EXPIRED),
        ("2100-01-31", OK),
        ("2100-01-31T12:00:00Z", OK),
    ):
        key = await added(service, keys, f"expires = {expiry}")
        assert await by_both(service, bearer(key)) == expected, expiry
        keys.remove(key)


async def test_a_key_is_replaced_and_taken_back(service: Service, keys: KeyFile) -> None:
    """Two keys of one caller are valid side by side, until one is removed."""
    old = await added(service, keys, name="rotated")
    new = await added(service, keys, name="rotated")
    for key in (old, new):
        assert await by_both(service, bearer(key)) == OK
    keys.remove(old)
    await changed(service)
    assert await by_both(service, bearer(old)) == INVALID
    assert await by_both(service, bearer(new)) == OK


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it has no [[keys]] tables"),
        (b"[[keys", "it is not TOML"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b"keys = 3", "it has no [[keys]] tables"),
        (b"[[key]]\nname = 'a'", "there is no key 'key'"),
        (b"[[keys]]\nname = 'a'\nkey = 'eg_secret'", "keys[0].key: must be sha256:"),
        (b"[[keys]]\nname = 'a'", "keys[0].key: is missing"),
        (b"[[keys]]\nname = 'a b'\nkey = 'sha256:%s'" % (b"0" * 64), "keys[0].name: must have 1"),
        (b"%s\nmodel = ['x']", "keys[0].model: there is no such key; did you mean models?"),
        (b"%s\nservices = ['embeds']", "keys[0].services.0: input should be 'embed'"),
        (b"%s\nservices = []", "keys[0].services: must not be empty"),
        (b"%s\nscopes = ['root']", "keys[0].scopes.0: input should be 'metrics' or 'admin'"),
        (b"%s\nexpires = 2027-01-31T12:00:00", "keys[0].expires: must be a date, or a time"),
        (b"%s\nexpires = 'soon'", "keys[0].expires: must be a date, or a time"),
        (b"%s\nlimits = {calls = 1}", "keys[0].limits.calls: there is no such key"),
        (b"%s\nlimits = {max_calls = -1}", "keys[0].limits.max_calls: input should be greater"),
        (b"%s\n%s", "keys[1].key: an earlier table has the same key"),
    ],
)
async def test_a_bad_file_changes_nothing(
    service: Service,
    keys: KeyFile,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
    problem: str,
) -> None:
    """The keys of before stay; the log says once what is wrong, without what the file says."""
    key = await added(service, keys)
    table = b"[[keys]]\nname = 'a'\nkey = 'sha256:%s'" % (b"0" * 64)
    keys.write(content.replace(b"%s", table))
    caplog.clear()
    for _ in range(3):
        await changed(service)
    assert await by_both(service, bearer(key)) == OK
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert problem in record.problem  # type: ignore[attr-defined] # of our own
    assert "eg_secret" not in caplog.text
    assert "0" * 64 not in record.problem  # type: ignore[attr-defined] # of our own
    keys.remove(key)
    await changed(service)
    assert await by_both(service, bearer(key)) == INVALID


async def test_the_server_looks_at_the_file_by_itself(service: Service, keys: KeyFile) -> None:
    """It counts what it loaded and what it refused."""
    before = {
        one.attributes["outcome"]: int(one.value)
        for one in service.server.figures.read()
        if one.metric == "embedgrpc.credentials.reloads"
        and one.attributes["setting"] == "api_keys_file"
    }
    keys.write(b"garbage")
    await reloaded(service, "api_keys_file", "refused", times=before["refused"] + 1)
    key = keys.add("by-itself")
    await reloaded(service, "api_keys_file", "loaded", times=before["loaded"] + 1)
    assert await by_both(service, bearer(key)) == OK


async def test_a_model_that_a_caller_may_not_use(service: Service, keys: KeyFile) -> None:
    """It is denied by any of its names; the default model, too. An unknown one is not found."""
    key = await added(service, keys, 'models = ["org/*"]', name="second-only")
    for name in ("embed", "cross", ""):
        answer = await by_both(service, bearer(key), **({"model": name} if name else {}))
        assert answer.status == "PERMISSION_DENIED"
        shown = name or "embed"
        assert answer.message == (
            f"second-only may not use the model {shown}; it may use: org/second"
        )
    for name in ("org/second", "other"):
        assert await by_both(service, bearer(key), model=name) == OK
    answer = await by_grpc(service, bearer(key), model="none")
    assert answer == ("NOT_FOUND", "")
    assert answer.message == "no model 'none'; served: org/second"


async def test_a_pattern_that_no_model_fits_is_logged(
    service: Service, keys: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be a mistake: the caller may use less than was meant."""
    await added(service, keys, 'models = ["org/*", "embed", "embde"]')
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert record.getMessage() == "callers are allowed models that are not served"
    assert "embde" in record.models  # type: ignore[attr-defined] # of our own
    assert "org/*" not in record.models  # type: ignore[attr-defined] # of our own


async def test_lists_show_what_the_caller_may_use(service: Service, keys: KeyFile) -> None:
    """Through every door."""
    key = await added(service, keys, 'models = ["other"]')
    metadata = (bearer(key),)
    listed = await service.client.models.ListModels(
        model_service_pb2.ListModelsRequest(), metadata=metadata
    )
    assert [one.id for one in listed.models] == ["org/second"]
    described = await service.client.models.GetServer(
        model_service_pb2.GetServerRequest(), metadata=metadata
    )
    assert described.server.default_model == ""
    http = HttpClient(service)
    headers: Mapping[str, Any] = {"authorization": f"Bearer {key}"}
    listing = (await http.get("/v1/models", **headers)).json
    assert [one["id"] for one in listing["data"]] == ["org/second"]
    assert (await http.get("/v1/models/embed", **headers)).status == 403
    names = (await http.get("/models", **headers)).json
    assert names == {"embedding_models": ["org/second"], "reranking_models": ["org/second"]}
    assert (await http.get("/info", **headers)).status == 403
    stubs: Any = tei_pb2_grpc
    info = stubs.InfoStub(service.client.channel)
    chosen = (*metadata, ("embedgrpc-model", "other"))
    assert (await info.Info(tei_pb2.InfoRequest(), metadata=chosen)).model_id == "org/second"


@pytest.mark.parametrize("key", ["first", "ec", "ed"])
async def test_a_token_names_its_caller(service: Service, issuer: Issuer, key: str) -> None:
    """By its subject, whichever key signed it, and again from the cache."""
    rights = {"models": ["embed"], "services": ["embed"], "limits": {"max_calls": 200}}
    token = issuer.token(key, sub="alice@example", embedgrpc=rights, scope="openid metrics")
    expected = Caller(
        "alice@example",
        Proof.TOKEN,
        frozenset({Scope.METRICS}),
        frozenset({Allowed.EMBED}),
        ("embed",),
        CallerLimits(max_calls=200),
    )
    for _ in range(2):
        assert await callers_of(service, bearer(token)) == [expected, expected]
    assert await by_both(service, bearer(token), model="cross") == DENIED
    plain = issuer.token(key, scp=["admin", "email"])
    scoped = Caller("alice", Proof.TOKEN, frozenset({Scope.ADMIN}))
    assert await callers_of(service, bearer(plain)) == [scoped, scoped]


def _segment(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _unsigned(header: Any, claims: Any, signature: bytes = b"") -> str:
    return ".".join((_segment(header), _segment(claims), _segment(signature)))


def _with_public_key(issuer: Issuer) -> str:
    """Sign with HS256 and what everybody knows: a server that went by the header would agree."""
    public = issuer.keys["first"][1].public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header, claims, _ = issuer.token(headers={"alg": "RS256"}).split(".")
    header = _segment({"alg": "HS256", "typ": "JWT", "kid": "first"})
    algorithm: Any = jwt.get_algorithm_by_name("HS256")
    signature = algorithm.sign(f"{header}.{claims}".encode(), secret)
    return f"{header}.{claims}.{_segment(signature)}"


def _forged(issuer: Issuer) -> str:
    other = Issuer("RS256")
    assert other.keys["first"] != issuer.keys["first"]
    return other.token()


NOW = int(time.time())
CLAIMS = {"iss": NAME, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 3600}


@pytest.mark.parametrize(
    ("make", "expected", "problem"),
    [
        (lambda one: one.token(exp=NOW - 60), EXPIRED, "has expired"),
        (lambda one: one.token(nbf=NOW + 86_400), INVALID, "not valid yet"),
        (lambda one: one.token(iat=NOW + 86_400), INVALID, "not valid yet"),
        (lambda one: one.token(aud="other"), INVALID, "another audience"),
        (lambda one: one.token(aud=["other", "another"]), INVALID, "another audience"),
        (lambda one: one.token(iss="https://other.example"), INVALID, "another issuer"),
        (lambda one: one.token(exp=None), INVALID, "no claim exp"),
        (lambda one: one.token(aud=None), INVALID, "no claim aud"),
        (lambda one: one.token(iss=None), INVALID, "no claim iss"),
        (lambda one: one.token(sub=None), INVALID, "no claim sub"),
        (lambda one: one.token(sub="a b"), INVALID, "claim sub of the token: must have 1"),
        (lambda one: one.token(sub="a" * 257), INVALID, "claim sub of the token: must have 1"),
        (lambda one: one.token(exp="soon"), INVALID, "malformed"),
        (lambda one: one.token(exp=10**400), INVALID, "malformed"),
        (lambda one: one.token(embedgrpc={"model": ["x"]}), INVALID, "did you mean models?"),
        (lambda one: one.token(embedgrpc=["embed"]), INVALID, "the token: embedgrpc"),
        (lambda one: one.token(embedgrpc={"models": []}), INVALID, "must not be empty"),
        (lambda one: one.token(headers={"kid": "none"}), INVALID, "unknown key"),
        (lambda one: one.token(headers={"kid": "k" * 129}), INVALID, "more than 128"),
        (lambda one: one.token("ec", headers={"kid": "first"}), INVALID, "unknown key"),
        (_forged, INVALID, "signature of the token is wrong"),
        (lambda one: one.token()[:-6], INVALID, "signature of the token is wrong"),
        (_with_public_key, INVALID, "another algorithm"),
        (lambda _: _unsigned({"alg": "none"}, CLAIMS), INVALID, "another algorithm"),
        (lambda _: _unsigned({"alg": "None"}, CLAIMS, b"x"), INVALID, "another algorithm"),
        (lambda _: _unsigned({"kid": "first"}, CLAIMS), INVALID, "another algorithm"),
        (lambda _: _unsigned({"alg": ["RS256"]}, CLAIMS), INVALID, "another algorithm"),
        (lambda _: _unsigned(b"{", CLAIMS), INVALID, "malformed"),
        (lambda _: _unsigned(b"[" * 2000, CLAIMS), INVALID, "malformed"),
        (lambda one: one.token().rsplit(".", 1)[0] + ".", INVALID, "signature"),
        (lambda one: one.token(pad="x" * 4000), OK, ""),
    ],
)
async def test_tokens(
    service: Service, issuer: Issuer, make: Any, expected: tuple[str, str], problem: str
) -> None:
    """Each gets the right answer, which says what is wrong and quotes nothing of the token."""
    token = make(issuer)
    answer = await by_both(service, bearer(token))
    assert answer == expected, answer
    assert problem in answer.message
    for part in ("alice", "other.example", "soon", *token.split(".")):
        assert len(part) < 4 or part not in answer.message


async def test_a_token_that_is_too_large_is_not_even_parsed(
    service: Service, issuer: Issuer
) -> None:
    """GRPC takes so much metadata; a line of HTTP does not."""
    token = issuer.token(pad="x" * 6200)
    assert len(token) > 8192
    answer = await by_grpc(service, bearer(token))
    assert answer == INVALID
    assert answer.message == f"the token has {len(token)} bytes; the limit is 8192"
    reply = await HttpClient(service).send("GET", "/v1/models", headers=[bearer(token)])
    assert reply.status == 431


async def test_no_credentials_are_logged(
    service: Service, keys: KeyFile, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither good ones nor bad ones, at any level."""
    caplog.set_level(logging.DEBUG)
    key = await added(service, keys)
    secrets = [key, "eg_wrong-key", issuer.token(), issuer.token(aud="other"), _forged(issuer)]
    for secret in secrets:
        await by_grpc(service, bearer(secret))
        await by_http(service, bearer(secret))
        await by_http(service, ("x-api-key", secret))
    written = caplog.text + "".join(str(vars(one)) for one in caplog.records)
    for secret in secrets:
        assert secret not in written
        assert secret.rsplit(".", maxsplit=1)[-1] not in written
