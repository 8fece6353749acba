"""What systemd is told, and the unit that makes it listen."""

import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from embedgrpc.server.process.service_manager import tell_service_manager
from tests.server.server_process import started
from tests.server.service import PATIENCE_S

UNIT = Path(__file__).parents[3] / "deploy/systemd/embedgrpc.service"


def _listen(address: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.settimeout(PATIENCE_S)
    listening.bind(address)
    return listening


@pytest.mark.parametrize("prefix", ["", "@"])
def test_a_state_is_sent_to_the_socket_of_the_environment(prefix: str, tmp_path: Path) -> None:
    """A path, or a name in Linux's abstract namespace."""
    address = str(tmp_path / "notify")
    with _listen(address.replace("/", "\0/", 1) if prefix else address) as listening:
        tell_service_manager("READY=1", {"NOTIFY_SOCKET": f"{prefix}{address}"})
        assert listening.recv(100) == b"READY=1"


def test_nobody_is_told_without_a_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without the variable nothing happens; a socket that has gone is a warning."""
    with caplog.at_level(logging.WARNING):
        tell_service_manager("READY=1", {})
        assert not caplog.records
        tell_service_manager("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert [record.message for record in caplog.records] == ["the service manager cannot be told"]


@pytest.mark.long
async def test_it_is_ready_once_a_model_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY comes after the model is loaded, STOPPING with the signal."""
    with _listen(str(tmp_path / "notify")) as listening:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with started(cache_dir=tmp_path) as server:
            await server.until("model ready")
            assert listening.recv(100) == b"READY=1"
            server.signal(signal.SIGTERM)
            assert await server.ended() == 0
            assert listening.recv(100) == b"STOPPING=1"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize(
    "check", [["verify"], ["security", "--offline=true", "--threshold=20", "--no-pager"]]
)
def test_the_unit_is_sound_and_confined(check: list[str], tmp_path: Path) -> None:
    """Every line is understood, and systemd's own score of exposure is below 2 of 10."""
    unit = tmp_path / UNIT.name
    text = UNIT.read_text("utf-8").replace("/opt/embedgrpc/bin/embedgrpc serve", sys.executable)
    unit.write_text(text, "utf-8")
    done = subprocess.run(
        [str(shutil.which("systemd-analyze")), *check, str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert UNIT.name not in done.stderr, done.stderr


def test_the_unit_waits_longer_than_the_server_stops() -> None:
    """Killed before that, calls would be lost."""
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)s$", UNIT.read_text("utf-8"), re.MULTILINE)
    assert int(seconds) > 30
