"""The command with keys, as a user runs it; and what it says where anybody may call."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedgrpc.server.process.process import exposure_warning
from embedgrpc.server.settings.settings import Settings
from tests.cli.command import embedgrpc
from tests.server.server_process import started

CLIENT = str(Path(sys.executable).parent / "embedgrpc-client")
TLS = {"tls_certificate_file": ("a.pem",), "tls_key_file": ("a.key",)}


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        (Settings(), False),
        (Settings(address="[::1]:1", http_address="localhost:2"), False),
        (Settings(address="unix:/run/one"), False),
        (Settings(address="0.0.0.0:1"), True),
        (Settings(address="10.0.0.1:1"), True),
        (Settings(http_address="0.0.0.0:1"), True),
        (Settings(address="0.0.0.0:1", **TLS), True),  # type: ignore[arg-type]
        (Settings(address="0.0.0.0:1", **TLS, tls_client_ca_file="ca.pem"), False),  # type: ignore[arg-type]
        (Settings(address="0.0.0.0:1", api_keys_file="keys.toml"), False),
    ],
)
def test_a_start_without_credentials_warns(settings: Settings, warns: bool) -> None:  # noqa: FBT001 - of the table
    """Only where others than this machine may call."""
    assert bool(exposure_warning(settings)) == warns


@pytest.mark.long
async def test_the_command_with_keys(cache_dir: Path, tmp_path: Path) -> None:
    """From a new key to a call with it; a file that is wrong ends the start."""
    made = embedgrpc("key", "new", "a-user")
    path, secret = tmp_path / "keys.toml", tmp_path / "secret"
    path.write_text(made.out)
    secret.write_text(made.err.splitlines()[-1])
    async with started("--api-keys-file", str(path), cache_dir=cache_dir) as server:
        address = (await server.until("serving"))["address"]
        for flags, code in ((("--api-key-file", str(secret)), 0), ((), 1)):
            done = await asyncio.to_thread(
                subprocess.run,
                [CLIENT, "models", "--target", address, *flags],
                env={"PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == code, done.stderr
            assert ("no credentials" in done.stderr) == bool(code)
        assert embedgrpc("health", "--address", address).code == 0
    path.write_text("[[keys]]\nname = 'a-user'\n")
    async with started("--api-keys-file", str(path), cache_dir=cache_dir) as server:
        assert await server.ended() == 2
        assert server.problems == [f"embedgrpc: api_keys_file {path}: keys[0].key: is missing"]


@pytest.mark.long
async def test_an_open_server_warns_once(cache_dir: Path) -> None:
    """At its start."""
    async with started(cache_dir=cache_dir, address="0.0.0.0:0") as server:
        await server.until("serving")
        warned = [line for line in server.lines if "anybody who can reach" in line]
        assert len(warned) == 1
