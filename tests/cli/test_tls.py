import asyncio
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedgrpc.cli.own_tls import own_tls
from embedgrpc.server.settings.settings import Settings
from tests.authority import Authority, Pair
from tests.cli.command import embedgrpc, embedgrpc_anew
from tests.server.server_process import started
from tests.server.service import PATIENCE_S
from tests.warm_python import Done

Run = Callable[..., Done]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that nothing on this machine knows."""
    return Authority(tmp_path)


def flags_of(pair: Pair) -> list[str]:
    """The flags of a server's certificate."""
    return ["--tls-certificate-file", str(pair.certificate), "--tls-key-file", str(pair.key)]


async def health(*arguments: str, run: Run = embedgrpc) -> Done:
    """Run the command while the server goes on."""
    return await asyncio.to_thread(run, "health", *arguments, "--timeout-s", "60")


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        (["10.1.2.3", "embed.example"], "embed.example"),
        (["*.embed.example"], "any.embed.example"),
        (["10.1.2.3"], "10.1.2.3"),
    ],
)
def test_a_name_of_the_certificate(authority: Authority, hosts: list[str], name: str) -> None:
    """A command of the same machine expects one of them, names first."""
    pair = authority.issue("server", *hosts)
    tls = {"ca_file": str(pair.certificate), "server_name": name}
    assert own_tls(Settings(**pair.settings)) == tls
    assert own_tls(Settings(**pair.settings, address="[::]:1")) == tls
    local = Settings(**pair.settings, address="unix:/run/x", http_address="127.0.0.1:1")
    assert own_tls(local) == {}


async def test_health_trusts_the_certificate_of_the_settings(
    authority: Authority, cache_dir: Path
) -> None:
    """The address of this machine need not be in it."""
    host = "10.1.2.3"
    flags = flags_of(authority.issue("server", host))
    async with started(*flags, cache_dir=cache_dir) as server:
        address = (await server.until("serving"))["address"]
        done = await health("--address", address, *flags, run=embedgrpc_anew)
        assert (done.code, done.out) == (0, "SERVING\n"), done.err
        other = flags_of(authority.issue("other", host))
        assert (await health("--address", address, *other)).code == 1


async def test_health_needs_an_address_without_certificates(
    authority: Authority, cache_dir: Path
) -> None:
    """Where clients need a certificate, the command has none to present."""
    flags = [*flags_of(authority.issue("server", "embed.example"))]
    flags += ["--tls-client-ca-file", str(authority.file)]
    plain = ("--health-address", "127.0.0.1:0")
    async with started(*flags, *plain, cache_dir=cache_dir) as server:
        listening = await server.until("listening")
        await server.until("serving")
        done = await health("--address", listening["address"], *flags)
        assert done.code == 2
        assert done.err == (
            "embedgrpc: clients need a certificate at the main address; set health_address"
            " (--health-address)\n"
        )
        done = await health("--health-address", listening["health_address"], *flags)
        assert (done.code, done.out) == (0, "SERVING\n"), done.err


async def test_the_first_call_to_try_works(authority: Authority, cache_dir: Path) -> None:
    """The suggested command trusts the server's certificate."""
    flags = flags_of(authority.issue("server", "embed.example"))
    async with started(*flags, "--log-format", "human", cache_dir=cache_dir) as server:
        assert server.process.stderr is not None
        line = ""
        async with asyncio.timeout(PATIENCE_S):
            while "try: " not in line:
                line = (await server.process.stderr.readline()).decode()
                assert line
        command = re.sub(r"\S*uv run ", "", line.partition("try: ")[2])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_shell(
            command, env={"PATH": path}, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        assert b'"vector"' in out
