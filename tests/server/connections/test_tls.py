"""TLS on both ports of a real server."""

import asyncio
import logging
import os
import random
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from embedgrpc.server.connections.certificates import CertificateError
from embedgrpc.server.connections.listening import StartError
from embedgrpc.server.connections.tls import Tls
from embedgrpc.server.http import acceptor, pieces
from embedgrpc.server.settings.settings import Settings
from tests.authority import HOSTS, Authority, Pair
from tests.server.service import PATIENCE_S, Service, serving, settings_for, until
from tests.server.tls_caller import TlsCaller, embed

Serve = Callable[..., Awaitable[Service]]
BOTH = {"http_address": "127.0.0.1:0", "tls_reload_interval_s": 0.02}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that clients trust."""
    return Authority(tmp_path)


KEYS = "the key must be RSA with 2048 to 4096 bits, or EC on P-256 or P-384"


def replace(pair: Pair, other: Pair) -> None:
    """Put another certificate and key in the place of a pair, one after the other."""
    for old, new in ((pair.key, other.key), (pair.certificate, other.certificate)):
        fresh = old.with_suffix(".new")
        fresh.write_bytes(new.read_bytes())
        fresh.replace(old)


def reloads(service: Service, outcome: str) -> float:
    """How often files were loaded, or refused."""
    return value_of(service, "embedgrpc.tls.reloads", outcome=outcome)


def value_of(service: Service, metric: str, **attributes: str) -> float:
    """The value of a metric."""
    (reading,) = (
        one
        for one in service.server.figures.read()
        if one.metric == metric and one.attributes == attributes
    )
    return reading.value


async def test_both_ports_speak_only_tls(
    serve: Serve, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """They answer alike over TLS; who speaks without it, or trusts another, fails quietly."""
    service = await serve(**BOTH, **authority.issue("server", *HOSTS).settings)
    await TlsCaller(service.server, authority.pem).over_both()

    caplog.clear()
    stranger = Authority(authority.folder, "stranger")
    await TlsCaller(service.server, stranger.pem).check_refused()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.client.embed("without TLS")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(aiohttp.ClientError):
        async with aiohttp.request("GET", f"http://{service.server.http_address}/health"):
            pass
    await TlsCaller(service.server, authority.pem).over_both()
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


async def test_a_client_gets_the_certificate_of_its_host(
    serve: Serve, authority: Authority
) -> None:
    """By its name, by a wildcard for one label, else the first."""
    first = authority.issue("first", "first.example")
    second = authority.issue("second", "Second.example", "*.wild.example")
    pairs = {name: (*first.settings[name], *second.settings[name]) for name in first.settings}
    service = await serve(**BOTH, **pairs)
    caller = TlsCaller(service.server, authority.pem)
    for host, name in (
        ("first.example", "first"),
        ("SECOND.example", "second"),
        ("one.wild.example", "second"),
        ("two.one.wild.example", "first"),
        ("unknown.example", "first"),
        # An address is no host name: the client names none.
        ("127.0.0.1", "first"),
    ):
        assert await caller.names(host) == [name, name], host


async def test_a_new_certificate_is_used_without_a_restart(
    serve: Serve, authority: Authority
) -> None:
    """New connections get it; one that is open goes on. The metric knows when it expires."""
    pair = authority.issue("before", *HOSTS, days=(-1, 20))
    service = await serve(**BOTH, **pair.settings)
    caller = TlsCaller(service.server, authority.pem)
    assert await caller.names() == ["before", "before"]
    certificate = str(pair.certificate)
    expiry = value_of(service, "embedgrpc.tls.certificate.expiry", certificate=certificate)
    async with caller.channel() as channel:
        vector = await embed(channel)
        replace(pair, authority.issue("after", *HOSTS, days=(-1, 21)))
        await until(lambda: reloads(service, "loaded"))
        assert await caller.names() == ["after", "after"]
        assert await embed(channel) == vector
    later = value_of(service, "embedgrpc.tls.certificate.expiry", certificate=certificate)
    assert later - expiry == pytest.approx(24 * 3600, abs=PATIENCE_S)
    await caller.over_both()


async def test_a_link_to_another_folder_is_followed(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    """As Kubernetes updates a secret: all files change at once, by a symbolic link."""
    old, new = authority.issue("old", *HOSTS), authority.issue("new", *HOSTS)
    for pair in (old, new):
        folder = tmp_path / pair.certificate.stem
        folder.mkdir()
        (folder / "tls.crt").write_bytes(pair.certificate.read_bytes())
        (folder / "tls.key").write_bytes(pair.key.read_bytes())
    link = tmp_path / "current"
    link.symlink_to("old")
    service = await serve(**BOTH, **Pair(link / "tls.crt", link / "tls.key").settings)
    caller = TlsCaller(service.server, authority.pem)
    assert await caller.names() == ["old", "old"]
    fresh = tmp_path / "fresh"
    fresh.symlink_to("new")
    fresh.replace(link)
    await until(lambda: reloads(service, "loaded"))
    assert await caller.names() == ["new", "new"]
    assert reloads(service, "refused") == 0


def garbage(pair: Pair, _: Authority) -> str:
    """Neither the certificate nor the key is one."""
    pair.certificate.write_text("neither")
    return f"tls_certificate_file {pair.certificate}: it has no certificate in PEM"


def missing(pair: Pair, _: Authority) -> str:
    """The key is gone."""
    pair.key.unlink()
    return f"tls_key_file {pair.key}: cannot be read: No such file or directory"


def large(pair: Pair, _: Authority) -> str:
    """The file is no certificate, but something large."""
    os.truncate(pair.certificate, 2**30)
    return f"tls_certificate_file {pair.certificate}: it has more than 1048576 bytes"


def other_key(pair: Pair, authority: Authority) -> str:
    """The key belongs to another certificate."""
    pair.key.write_bytes(authority.issue("other", *HOSTS).key.read_bytes())
    return (
        f"tls_key_file {pair.key}: it is not the key of the first certificate in {pair.certificate}"
    )


def no_key(pair: Pair, _: Authority) -> str:
    """The file of the key has the certificate."""
    pair.key.write_bytes(pair.certificate.read_bytes())
    return f"tls_key_file {pair.key}: it has no private key in PEM"


def encrypted(pair: Pair, _: Authority) -> str:
    """The key has a password."""
    key = ec.generate_private_key(ec.SECP256R1())
    secret = BestAvailableEncryption(b"password")
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    return f"tls_key_file {pair.key}: it is encrypted; give it without a password"


def expired(pair: Pair, authority: Authority) -> str:
    """The certificate has expired."""
    replace(pair, authority.issue("expired", *HOSTS, days=(-3, -1)))
    return f"tls_certificate_file {pair.certificate}: it expired at "


def early(pair: Pair, authority: Authority) -> str:
    """The certificate is not yet valid."""
    replace(pair, authority.issue("early", *HOSTS, days=(1, 3)))
    return f"tls_certificate_file {pair.certificate}: it is valid only from "


def nameless(pair: Pair, authority: Authority) -> str:
    """The certificate has a common name only."""
    replace(pair, authority.issue("nameless"))
    return f"tls_certificate_file {pair.certificate}: it has no subject alternative name"


def unusual(pair: Pair, authority: Authority) -> str:
    """The key is of a kind that gRPC cannot use."""
    key = ed25519.Ed25519PrivateKey.generate()
    replace(pair, authority.issue("unusual", *HOSTS, key=key))
    return f"tls_key_file {pair.key}: {KEYS}"


def curve(pair: Pair, authority: Authority) -> str:
    """The curve is one that gRPC cannot use."""
    key = ec.generate_private_key(ec.SECP521R1())
    replace(pair, authority.issue("curve", *HOSTS, key=key))
    return f"tls_key_file {pair.key}: {KEYS}"


def weak(pair: Pair, authority: Authority) -> str:
    """The key is too short."""
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - refused
    replace(pair, authority.issue("weak", *HOSTS, key=key))
    return f"tls_key_file {pair.key}: {KEYS}"


def torn(pair: Pair, _: Authority) -> str:
    """The certificate is PEM with something else inside."""
    pair.certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return f"tls_certificate_file {pair.certificate}: it has no certificate in PEM"


FAULTS = [garbage, missing, large, other_key, no_key, encrypted]
FAULTS += [expired, early, nameless, unusual, curve, weak, torn]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_server_does_not_start_with_bad_files(
    authority: Authority, cache_dir: Path, fault: Callable[[Pair, Authority], str]
) -> None:
    """The error names the setting, the file, and what is wrong."""
    pair = authority.issue("server", *HOSTS)
    problem = fault(pair, authority)
    settings = settings_for(cache_dir=cache_dir, **pair.settings)
    with pytest.raises(StartError) as caught:
        async with serving(settings, load=False):
            pass
    assert str(caught.value).startswith(problem)
    assert caught.value.settings_are_wrong


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_damaged_certificates(authority: Authority) -> None:
    """Whatever is in a file, the only error is the one that keeps the former files in use."""
    pair = authority.issue("server", *HOSTS)
    settings = Settings(**pair.settings)
    (leaf,) = x509.load_pem_x509_certificates(pair.certificate.read_bytes())
    good = leaf.public_bytes(Encoding.DER)
    chance = random.Random(7)  # noqa: S311 - no secret
    refused = 0
    for _ in range(500):
        damaged = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 8))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        pair.certificate.write_text(ssl.DER_cert_to_PEM_cert(bytes(damaged)))
        try:
            Tls(settings)
        except CertificateError:
            refused += 1
    # The signature, which only clients check, and the names may be anything.
    assert 100 < refused < 500


async def test_bad_files_change_nothing(
    serve: Serve, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is refused and logged once, the former files stay in use, and good ones are taken."""
    pair = authority.issue("before", *HOSTS)
    service = await serve(**BOTH, **pair.settings)
    caller = TlsCaller(service.server, authority.pem)
    before = pair.certificate.read_bytes(), pair.key.read_bytes()
    for count, fault in enumerate((garbage, other_key, expired), start=1):
        pair.key.write_bytes(before[1])
        pair.certificate.write_bytes(before[0])
        await until(lambda count=count: reloads(service, "loaded") >= count - 1)  # type: ignore[misc]
        caplog.clear()
        problem = fault(pair, authority)
        await until(lambda: reloads(service, "refused") and logged(caplog, problem))  # noqa: B023 - run at once
        assert await caller.names() == ["before", "before"]
        assert len(logged(caplog, problem)) == 1
    replace(pair, authority.issue("after", *HOSTS))
    loaded = reloads(service, "loaded")
    await until(lambda: reloads(service, "loaded") > loaded)
    assert await caller.names() == ["after", "after"]


async def test_files_that_were_refused_are_tried_again(serve: Serve, authority: Authority) -> None:
    """A certificate that comes too early is used once it is valid, though no file changes."""
    pair = authority.issue("before", *HOSTS)
    service = await serve(**BOTH, **pair.settings)
    replace(pair, authority.issue("soon", *HOSTS, days=(2 / 86_400, 30)))
    await until(lambda: reloads(service, "refused"))
    await until(lambda: reloads(service, "loaded"))
    assert await TlsCaller(service.server, authority.pem).names() == ["soon", "soon"]


def logged(caplog: pytest.LogCaptureFixture, problem: str) -> list[logging.LogRecord]:
    """The log's lines about a problem."""
    return [one for one in caplog.records if str(getattr(one, "problem", "")).startswith(problem)]


async def test_only_clients_with_a_certificate(serve: Serve, authority: Authority) -> None:
    """Both ports want one of the authority of now, which may change."""
    clients = Authority(authority.folder, "clients")
    own = clients.issue("client", *HOSTS)
    pair = authority.issue("server", *HOSTS)
    service = await serve(**BOTH, **pair.settings, tls_client_ca_file=str(clients.file))

    def caller(own: Pair | None) -> TlsCaller:
        return TlsCaller(service.server, authority.pem, own)

    await caller(own).over_both()
    await caller(None).check_refused()
    others = Authority(authority.folder, "others")
    newer = others.issue("newer", *HOSTS)
    await caller(newer).check_refused()

    clients.file.write_bytes("# Autorit\u00e9\n".encode() + clients.pem + others.pem)
    await until(lambda: reloads(service, "loaded") == 1)
    await caller(own).over_both()
    await caller(newer).over_both()

    clients.file.write_bytes(others.pem)
    await until(lambda: reloads(service, "loaded") == 2)
    await caller(own).check_refused()
    await caller(newer).over_both()


async def test_a_session_is_not_resumed_past_a_change_of_authorities(
    serve: Serve, authority: Authority
) -> None:
    """A resumed session would skip the check: the HTTP port offers none to clients with one."""
    clients = Authority(authority.folder, "clients")
    own = clients.issue("client", *HOSTS)
    service = await serve(
        **BOTH,
        **authority.issue("server", *HOSTS).settings,
        tls_client_ca_file=str(clients.file),
    )
    context = TlsCaller(service.server, authority.pem, own).context()
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    session = writer.get_extra_info("ssl_object").session
    writer.close()
    assert session is None or not session.has_ticket
    older = TlsCaller(service.server, authority.pem, own).context()
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(host, int(port), ssl=older)


async def test_a_certificate_on_request(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """HTTP takes clients without one, and checks one that a client has; gRPC is on a socket."""
    clients = Authority(authority.folder, "clients")
    service = await serve(
        **BOTH,
        **authority.issue("server", *HOSTS).settings,
        address=f"unix:{tmp_path}/grpc.sock",
        tls_client_ca_file=str(clients.file),
        tls_client_auth="request",
    )
    vector = await TlsCaller(service.server, authority.pem).over_http()
    own = clients.issue("client", *HOSTS)
    assert await TlsCaller(service.server, authority.pem, own).over_http() == vector
    stranger = authority.issue("stranger", *HOSTS)
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await TlsCaller(service.server, authority.pem, stranger).over_http()
    # The socket needs no TLS.
    answer = await service.client.embed("a text over TLS")
    assert list(answer.embeddings[0].dense.values) == pytest.approx(vector)


async def test_probes_need_no_tls(serve: Serve, authority: Authority) -> None:
    """Kubernetes cannot speak TLS to a gRPC probe."""
    pair = authority.issue("server", *HOSTS)
    service = await serve(**pair.settings, health_address="127.0.0.1:0")
    async with grpc.aio.insecure_channel(service.server.health_address) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"", timeout=PATIENCE_S) == b"\x08\x01"


async def test_a_handshake_has_a_time_limit(
    serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of the HTTP port that never begins one loses its connection."""
    monkeypatch.setattr(acceptor, "_HANDSHAKE_S", 0.2)
    service = await serve(**BOTH, **authority.issue("server", *HOSTS).settings)
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["RSA", "P-256", "P-384"],
)
async def test_each_kind_of_key_that_is_accepted_works(
    serve: Serve, authority: Authority, key: Any
) -> None:
    """Both ports can use it."""
    service = await serve(**BOTH, **authority.issue("server", *HOSTS, key=key).settings)
    await TlsCaller(service.server, authority.pem).over_both()


async def test_a_large_answer_is_encrypted_in_pieces(
    serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write would hold the event loop for as long as its encryption takes."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4096)
    service = await serve(**BOTH, **authority.issue("server", *HOSTS).settings)
    sizes: list[int] = []
    write = ssl.SSLObject.write

    def record(self: ssl.SSLObject, data: Any) -> int:
        sizes.append(len(data))
        return write(self, data)

    caller = TlsCaller(service.server, authority.pem)
    url = f"https://{service.server.http_address}/openapi.json"
    monkeypatch.setattr(ssl.SSLObject, "write", record)
    for method in ("GET", "HEAD", "GET"):
        connector = aiohttp.TCPConnector(ssl=caller.context())
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, url) as response,
        ):
            body = await response.read()
        if method == "GET":
            assert response.status == 200
            assert len(body) == response.content_length
            assert len(body) > 5 * 4096
            assert await response.json()
    # The first has the headers, too.
    assert max(sizes) < 2 * 4096


@pytest.mark.parametrize(
    ("rotations", "interval_s"),
    [(10, 0.1), pytest.param(30, 2.0, marks=[pytest.mark.long, pytest.mark.timeout(180)])],
)
async def test_no_call_fails_while_certificates_rotate(
    serve: Serve, authority: Authority, rotations: int, interval_s: float
) -> None:
    """Certificates and their authority change under load; clients trust both authorities."""
    second = Authority(authority.folder, "second")
    trusted = authority.pem + second.pem
    pairs = [one.issue(f"server-{one.folder.name}", *HOSTS) for one in (authority, second)]
    owns = [one.issue("client", *HOSTS) for one in (authority, second)]
    clients = authority.folder / "clients.pem"
    clients.write_bytes(trusted)
    used = Pair(authority.folder / "used.pem", authority.folder / "used.key")
    replace(used, pairs[0])
    service = await serve(**BOTH, **used.settings, tls_client_ca_file=str(clients))
    done = asyncio.Event()
    calls = 0

    async def call_on_and_on(call: Callable[[], Awaitable[Any]]) -> None:
        nonlocal calls
        while not done.is_set():
            await call()
            calls += 1

    callers = [TlsCaller(service.server, trusted, own) for own in owns]
    async with asyncio.TaskGroup() as load, callers[0].channel() as channel:
        for caller in callers:
            load.create_task(call_on_and_on(caller.over_grpc))
            load.create_task(call_on_and_on(caller.over_http))
        load.create_task(call_on_and_on(lambda: embed(channel)))
        for turn in range(1, rotations + 1):
            replace(used, pairs[turn % 2])
            loaded = [f"server-{one.folder.name}" for one in (authority, second)][turn % 2]
            await until(lambda turn=turn: reloads(service, "loaded") >= turn)  # type: ignore[misc]
            assert await callers[turn % 2].names() == [loaded, loaded]
            before = calls
            await asyncio.sleep(interval_s)
            await until(lambda before=before: calls > before)  # type: ignore[misc]
        done.set()
    assert calls > rotations
