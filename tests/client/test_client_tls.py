import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from embedgrpc.client import AsyncClient, Client, ConnectionFailedError, HealthStatus
from embedgrpc.client.cli import main
from tests.authority import Authority, Pair
from tests.client.servicer import Servicer, serving

_PATIENCE_S = 60.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The authority of the server and of its clients."""
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    """The client's certificate."""
    return authority.issue("before", "client")


@pytest.fixture
def server(authority: Authority) -> Iterator[tuple[Servicer, str]]:
    """A server that accepts only clients with a certificate."""
    with _serving(authority, "localhost", "127.0.0.1", requires_client=True) as served:
        yield served


def _serving(authority: Authority, *hosts: str, requires_client: bool = False) -> Any:
    own = authority.issue("server", *hosts)
    credentials = grpc.ssl_server_credentials(
        [(own.key.read_bytes(), own.certificate.read_bytes())],
        authority.pem if requires_client else None,
        requires_client,
    )
    return serving(credentials=credentials)


def _files(authority: Authority, pair: Pair) -> dict[str, str]:
    return {
        "ca_file": str(authority.file),
        "certificate_file": str(pair.certificate),
        "key_file": str(pair.key),
    }


@pytest.fixture
def client(
    client_class: type[Client], target: str, authority: Authority, pair: Pair
) -> Iterator[Client]:
    """A client of either class that looks at its files before every call."""
    made = client_class(target, timeout_s=_PATIENCE_S, **_files(authority, pair))  # type: ignore[arg-type]
    _inside(made)._tls._check_interval_s = 0
    yield made
    made.close()


def _inside(client: Client) -> Any:
    return getattr(client, "_client", client)


def _replace(pair: Pair, other: Pair) -> None:
    for old, new in ((pair.key, other.key), (pair.certificate, other.certificate)):
        fresh = old.with_suffix(".new")
        fresh.write_bytes(new.read_bytes())
        fresh.replace(old)


def test_a_client_presents_its_certificate(
    client: Client, target: str, client_class: type[Client], authority: Authority
) -> None:
    """The server knows it; without one, or for another authority, the connection fails."""
    assert client.health() is HealthStatus.SERVING
    stranger = Authority(authority.folder, "stranger")
    for ca in (authority.file, stranger.file):
        other = client_class(target, timeout_s=_PATIENCE_S, ca_file=str(ca))
        with pytest.raises(ConnectionFailedError):
            other.health()
        other.close()


def test_new_files_are_used_by_later_calls(
    client: Client, server: tuple[Servicer, str], authority: Authority, pair: Pair
) -> None:
    """A stream in flight keeps its connection, which is closed once it has ended."""
    script = server[0].script
    client.embed(["one"])
    script.hold_answers = threading.Event()
    with client.embed_stream([str(number) for number in range(8)]) as stream:
        stream.ready()
        _replace(pair, authority.issue("after", "client"))
        client.embed(["two"])
        assert script.names == ["before", "after"]
        assert len(_inside(client)._former) == 1
        script.hold_answers.set()
        assert [result.id for result in stream] == [str(number) for number in range(8)]
    _replace(pair, authority.issue("third", "client"))
    client.embed(["three"])
    assert script.names[-1] == "third"
    assert _inside(client)._former == []
    client.embed(["four"])
    assert script.names[-1] == "third"


def test_bad_files_are_not_used(
    client: Client,
    server: tuple[Servicer, str],
    authority: Authority,
    pair: Pair,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Calls go on with the former ones, a warning says why, and good files are used again."""
    client.embed(["one"])
    pair.key.write_text("half a fi")
    client.embed(["two"])
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert str(pair.key) in record.getMessage()
    assert "half" not in record.getMessage()
    _replace(pair, authority.issue("after", "client"))
    client.embed(["three"])
    assert server[0].script.names == ["before", "before", "after"]


def test_files_are_not_looked_at_for_every_call(
    client: Client, server: tuple[Servicer, str], authority: Authority, pair: Pair
) -> None:
    """A look costs system calls: there is none within the interval."""
    client.embed(["one"])
    _inside(client)._tls._check_interval_s = 3600
    _replace(pair, authority.issue("after", "client"))
    client.embed(["two"])
    assert server[0].script.names == ["before", "before"]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_with_files_can_be_pickled(
    kind: type[Client] | type[AsyncClient], target: str, authority: Authority, pair: Pair
) -> None:
    """A pickle has their names and no key."""
    made = kind(target, tls=True, server_name="localhost", **_files(authority, pair))  # type: ignore[arg-type]
    pickled = pickle.dumps(made)
    assert b"PRIVATE KEY" not in pickled
    copy = pickle.loads(pickled)  # noqa: S301 -- from this test
    assert copy._tls_settings == made._tls_settings


def test_the_name_of_the_server(client_class: type[Client], authority: Authority) -> None:
    """It is that of the target, unless one is given; its own certificate will do as authority."""
    with _serving(authority, "embed.example") as (_, target):
        own = str(authority.folder / "server.pem")
        client = client_class(target, timeout_s=_PATIENCE_S, ca_file=own)
        with pytest.raises(ConnectionFailedError):
            client.health()
        client.close()
        client = client_class(
            target, timeout_s=_PATIENCE_S, ca_file=own, server_name="embed.example"
        )
        assert client.health() is HealthStatus.SERVING
        client.close()


def _missing(_: Authority, pair: Pair) -> str:
    pair.certificate.unlink()
    return f"certificate_file {pair.certificate} cannot be read: No such file or directory"


def _no_authority(authority: Authority, _: Pair) -> str:
    authority.file.write_text("nothing")
    return f"ca_file {authority.file} has no certificate in PEM"


def _other_key(authority: Authority, pair: Pair) -> str:
    pair.key.write_bytes(authority.issue("other", "client").key.read_bytes())
    return (
        f"certificate_file {pair.certificate} and key_file {pair.key} cannot be used:"
        " KEY_VALUES_MISMATCH"
    )


def _encrypted(_: Authority, pair: Pair) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    secret = BestAvailableEncryption(b"password")
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    return "key_file is encrypted; give it without a password"


@pytest.mark.parametrize("fault", [_missing, _no_authority, _other_key, _encrypted])
def test_a_file_that_cannot_be_used(
    client: Client, authority: Authority, pair: Pair, fault: Callable[[Authority, Pair], str]
) -> None:
    """The first call says which, and why; the next one tries again."""
    before = pair.certificate.read_bytes(), pair.key.read_bytes(), authority.pem
    problem = fault(authority, pair)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        client.health()
    assert str(caught.value) == problem
    for file, content in zip((pair.certificate, pair.key, authority.file), before, strict=True):
        file.write_bytes(content)
    assert client.health() is HealthStatus.SERVING


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"certificate_file": "a"}, "certificate_file and key_file must be set together"),
        ({"key_file": "a"}, "certificate_file and key_file must be set together"),
        ({"server_name": "a"}, "server_name needs TLS: set tls or ca_file"),
        (
            {"tls": True, "credentials": grpc.ssl_channel_credentials()},
            "give either credentials, or tls and files",
        ),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_options_that_do_not_fit(
    kind: type[Client] | type[AsyncClient], options: dict[str, Any], problem: str
) -> None:
    """They are refused at once."""
    with pytest.raises(ValueError, match=problem):
        kind("127.0.0.1:1", **options)


def test_the_command_has_the_same_flags(
    target: str, authority: Authority, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    """They follow the command, and errors are one line."""
    flags = ["--target", target, "--timeout-s", "60", "--server-name", "localhost"]
    for name, path in _files(authority, pair).items():
        flags += [f"--{name.replace('_', '-')}", path]
    assert main(["health", *flags]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert main(["health", *flags[:-2]]) == 1
    line = "embedgrpc-client: certificate_file and key_file must be set together\n"
    assert capsys.readouterr().err == line
    assert main(["health", "--target", target, "--tls", "--timeout-s", "60"]) == 1
    assert f"the connection to {target} failed" in capsys.readouterr().err
