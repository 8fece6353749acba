"""TLS in a server process, whose event loop and gRPC differ from those of the other tests."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.authority import HOSTS, Authority
from tests.server.server_process import started
from tests.server.tls_caller import TlsCaller


@pytest.mark.parametrize(
    "more",
    [(), pytest.param(("--trusted-network",), marks=pytest.mark.slow)],
    ids=["default", "trusted"],
)
async def test_both_ports_of_a_process(
    tmp_path: Path, cache_dir: Path, more: tuple[str, ...]
) -> None:
    """They check clients, take new certificates, and stop without an error."""
    authority = Authority(tmp_path)
    # With one key there is no moment at which the files do not fit together.
    key = ec.generate_private_key(ec.SECP256R1())
    pair, new = (authority.issue(name, *HOSTS, key=key) for name in ("before", "after"))
    own = authority.issue("client", "client")
    flags = [
        *("--tls-certificate-file", str(pair.certificate), "--tls-key-file", str(pair.key)),
        *("--tls-client-ca-file", str(authority.file), "--tls-reload-interval-s", "0.1"),
        *("--http-address", "127.0.0.1:0"),
    ]
    async with started(*flags, *more, cache_dir=cache_dir) as process:
        addresses = await process.until("listening")
        await process.until("serving")
        server: Any = SimpleNamespace(**addresses)
        caller = TlsCaller(server, authority.pem, own)
        assert await caller.names() == ["before", "before"]
        await caller.over_both()
        await TlsCaller(server, authority.pem).check_refused()
        new.certificate.replace(pair.certificate)
        await process.until("certificates reloaded")
        assert await caller.names() == ["after", "after"]
        await caller.over_both()
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        problem = '"level": "error"', '"level": "warning"', "Traceback"
        assert not [line for line in process.lines if any(one in line for one in problem)]
