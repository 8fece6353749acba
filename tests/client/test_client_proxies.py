"""Calls to this machine never go through a proxy."""

import socket

import pytest

from embedgrpc.client import Client, EmbedGrpcError
from embedgrpc.client.proxies import proxy_options

DIRECT = (("grpc.enable_http_proxy", 0),)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("127.0.0.1:50051", DIRECT),
        ("127.8.9.1:50051", DIRECT),
        ("[::1]:50051", DIRECT),
        ("localhost:50051", DIRECT),
        ("LOCALHOST", DIRECT),
        ("a.localhost:1", DIRECT),
        ("dns:///localhost:50051", DIRECT),
        ("ipv4:127.0.0.1:50051", DIRECT),
        ("ipv6:[::1]:50051", DIRECT),
        ("unix:/run/s", DIRECT),
        ("unix:///run/s", DIRECT),
        ("unix-abstract:s", DIRECT),
        ("10.0.0.1:50051", ()),
        ("[2001:db8::1]:50051", ()),
        ("embedder:50051", ()),
        ("localhost.example:50051", ()),
        ("dns:///embedder.svc:50051", ()),
        ("xds:///127.0.0.1", ()),
    ],
)
def test_what_is_called_directly(target: str, options: tuple[tuple[str, int], ...]) -> None:
    """Loopback addresses and Unix sockets need no proxy; for others `no_proxy` decides."""
    assert proxy_options(target) == options


def test_a_proxy_is_asked_for_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy resolves the name of another host; the client does not."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        proxy.settimeout(20)
        with Client("embedder.invalid:50051", timeout_s=1) as client:
            with pytest.raises(EmbedGrpcError):
                client.health()
            connection, _ = proxy.accept()
            with connection:
                assert connection.recv(64).startswith(b"CONNECT embedder.invalid:50051 ")
