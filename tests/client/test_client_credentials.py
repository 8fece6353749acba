"""The key or token of a client, sent with every call, and to nobody who may not read it."""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.client import AsyncClient, Client
from embedgrpc.client.cli import main
from tests.client.servicer import Script

_KEYS = ("authorization", "x-api-key")


def _sent(script: Script) -> list[tuple[str, str]]:
    """The credentials of the last call."""
    return [(key, str(value)) for key, value in script.metadata if key in _KEYS]


def _embed(client: Client) -> None:
    client.embed(["a"])


def _stream(client: Client) -> None:
    with client.embed_stream(["a"]) as stream:
        list(stream)


def test_a_key_goes_with_every_call(
    client_class: type[Client], target: str, script: Script
) -> None:
    """Unary calls and streams carry it, beside the client's own metadata."""
    client = client_class(target, api_key="eg_key", metadata=[("x-team", "search")])
    with contextlib.closing(client):
        for call in (_embed, _stream):
            script.metadata.clear()
            call(client)
            assert _sent(script) == [("x-api-key", "eg_key")]
            assert ("x-team", "search") in script.metadata


def test_a_token_is_asked_for_each_call(
    client_class: type[Client], target: str, script: Script
) -> None:
    """So that it may be renewed."""
    tokens = iter(("one", "two"))
    client = client_class(target, token=lambda: next(tokens))
    with contextlib.closing(client):
        for call, token in ((_embed, "one"), (_stream, "two")):
            call(client)
            assert _sent(script) == [("authorization", f"Bearer {token}")]


async def test_an_async_client_takes_a_coroutine_function(target: str, script: Script) -> None:
    """It may fetch the token without blocking the event loop."""

    async def fetch() -> str:
        return "fetched"

    async with AsyncClient(target, token=fetch) as client:
        await client.embed(["a"])
        assert _sent(script) == [("authorization", "Bearer fetched")]
        script.metadata.clear()
        async with client.embed_stream(["a"]) as stream:
            _ = [one async for one in stream]
        assert _sent(script) == [("authorization", "Bearer fetched")]
    with Client(target, token=fetch) as blocking, pytest.raises(TypeError, match="return a str"):
        blocking.embed(["a"])


def test_a_pickle_holds_the_key(target: str, script: Script) -> None:
    """A worker elsewhere is the same caller."""
    with pickle.loads(pickle.dumps(Client(target, api_key="eg_key"))) as client:  # noqa: S301 - our own
        client.embed(["a"])
    assert _sent(script) == [("x-api-key", "eg_key")]


@pytest.mark.parametrize("target", ["10.0.0.1:50051", "dns:///server:50051", "[2001:db8::1]:1"])
def test_no_key_goes_to_another_machine_in_plain_text(
    client_class: type[Client], target: str
) -> None:
    """Unless the user says that everybody on the way may read it."""
    for credentials in ({"api_key": "eg_secret"}, {"token": "secret"}, {"token": lambda: "secret"}):
        options: dict[str, Any] = dict(credentials)
        with pytest.raises(ValueError, match="plain text") as refused:
            client_class(target, **options)
        assert "secret" not in str(refused.value)
        client_class(target, **options, tls=True).close()
        client_class(target, **options, allow_plaintext_credentials=True).close()


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.2:1", "[::1]:1", "unix:/run/one"])
def test_a_key_may_stay_on_this_machine(client_class: type[Client], target: str) -> None:
    """Nobody else can read it there."""
    client_class(target, api_key="eg_key").close()


@pytest.mark.parametrize("credentials", ["a b", "a\nx-other: b", "ü", "\ud800"])
def test_what_cannot_be_sent_is_refused(
    client_class: type[Client], target: str, credentials: str
) -> None:
    """It is not shown."""
    for name in ("api_key", "token"):
        options: dict[str, Any] = {name: credentials}
        with pytest.raises(ValueError, match=f"{name} must be printable ASCII") as refused:
            client_class(target, **options)
        assert credentials not in str(refused.value)
    client = client_class(target, token=lambda: credentials)
    with contextlib.closing(client), pytest.raises(ValueError, match="token must be printable"):
        client.embed(["a"])
    with pytest.raises(ValueError, match="either api_key or token"):
        client_class(target, api_key="one", token="two")  # noqa: S106 - none


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with a key or a token."""
    path = tmp_path / "secret"
    path.write_text("from-a-file\n")
    return path


def test_the_command_reads_files_and_variables(
    target: str,
    script: Script,
    secret: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flag wins over a variable; neither takes a secret on the command line."""
    file = str(secret)
    for arguments, variables, sent in (
        (("--api-key-file", file), {}, ("x-api-key", "from-a-file")),
        (("--token-file", file), {}, ("authorization", "Bearer from-a-file")),
        ((), {"EMBEDGRPC_API_KEY": "eg_key"}, ("x-api-key", "eg_key")),
        ((), {"EMBEDGRPC_TOKEN": "token"}, ("authorization", "Bearer token")),
        (
            ("--token-file", file),
            {"EMBEDGRPC_API_KEY": "eg_key"},
            ("authorization", "Bearer from-a-file"),
        ),
    ):
        script.metadata.clear()
        with monkeypatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            assert main(["server", "--target", target, *arguments]) == 0
        assert _sent(script) == [sent]


def test_the_command_refuses_credentials_that_it_cannot_use(
    secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line."""
    file = str(secret)
    for arguments, problem in (
        (("--api-key-file", "/none"), "No such file"),
        (("--target", "10.0.0.1:1", "--api-key-file", file), "in plain text"),
    ):
        assert main(["server", *arguments]) == 1
        written = capsys.readouterr()
        assert written.out == ""
        assert problem in written.err
        assert written.err.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        main(["server", "--api-key-file", file, "--token-file", file])
    assert ended.value.code == 2
    assert "give either --api-key-file or --token-file" in capsys.readouterr().err
