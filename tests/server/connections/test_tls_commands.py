"""The commands of the documentation that use certificates run as they are."""

import asyncio
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.authority import HOSTS, Authority
from tests.server.conftest import Serve
from tests.server.service import PATIENCE_S

ROOT = Path(__file__).parents[3]
TOOLS = ROOT / ".cache" / "bin"
# The page, the program, and the address that its commands name.
PAGES = {
    "curl": (ROOT / "docs" / "http.md", "127.0.0.1:8080"),
    "grpcurl": (ROOT / "docs" / "grpcurl.md", "127.0.0.1:50051"),
}
CLIENT = ("client.pem", "client.key")


def commands(program: str) -> list[str]:
    """Return the commands of a program's page that name an authority."""
    text = PAGES[program][0].read_text("utf-8")
    blocks = re.findall(rf"^```sh\n({program} .*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [one for one in blocks if "-cacert" in one]


async def run(command: str, folder: Path) -> tuple[int | None, str]:
    """Run a command as a shell does, in the folder with the certificates."""
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", command.replace("curl ", "curl -sS ", command.startswith("curl "))),
        cwd=folder,
        env=os.environ | {"PATH": f"{TOOLS}:{os.environ['PATH']}", "no_proxy": "127.0.0.1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode, output.decode()


@pytest.mark.parametrize("program", PAGES)
async def test_the_commands_with_certificates(serve: Serve, tmp_path: Path, program: str) -> None:
    """Those with a client's certificate reach every server, the others one that wants none."""
    if shutil.which(program, path=f"{TOOLS}:{os.environ['PATH']}") is None:
        pytest.skip(f"{program} is not installed")
    authority = Authority(tmp_path)
    server, client = authority.issue("server", *HOSTS), authority.issue("client")
    shutil.copy(authority.file, tmp_path / "ca.pem")
    for path, name in zip((client.certificate, client.key), CLIENT, strict=True):
        shutil.copy(path, tmp_path / name)
    settings: dict[str, Any] = {"http_address": "127.0.0.1:0", **server.settings}
    plain = await serve(**settings)
    mutual = await serve(**settings, tls_client_ca_file=str(authority.file))
    without, with_client = commands(program)
    assert [one for one in CLIENT if one in without] == []
    assert [one for one in CLIENT if one in with_client] == [*CLIENT]
    for command in (without, with_client):
        for one in (plain, mutual):
            address = one.server.http_address if program == "curl" else one.address
            named = PAGES[program][1]
            assert named in command
            works = one is plain or command is with_client
            chosen = command.replace(named, address)
            if not works:
                # It tries again for ten seconds by default.
                chosen = chosen.replace("grpcurl ", "grpcurl -connect-timeout 3 ", 1)
            code, output = await run(chosen, tmp_path)
            assert (code == 0) is works, output
            if works:
                assert "embed" in output
