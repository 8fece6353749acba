"""A new user's first command, with nothing but Debian's own Python."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from embedgrpc.client import Client
from tests.service.test_readme import README, ROOT, runnable

PYTHON = Path("/usr/bin/python3")
# Where downloads and certificates are differs from machine to machine, and is not what is tested.
KEPT = ("SSL_CERT_FILE", "PIP_CERT", "PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX")

pytestmark = pytest.mark.long


def _find_obstacle() -> str:
    """Return why this machine cannot play a stock Debian; empty if it can."""
    if not PYTHON.exists():
        return f"there is no {PYTHON}"
    if not list(Path("/usr/lib").glob("python3*/EXTERNALLY-MANAGED")):
        return f"{PYTHON} is not managed by Debian"
    done = subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False)
    return "" if done.returncode == 0 else f"{PYTHON} has no pip (apt install python3-pip)"


@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(_find_obstacle()), reason=_find_obstacle())
def test_the_first_command_serves_from_a_fresh_clone(tmp_path: Path) -> None:
    """It serves the default model, installs no development tools, and leaves git clean."""
    clone = tmp_path / "embedgrpc"
    subprocess.run(["/usr/bin/env", "git", "clone", "--quiet", ROOT, clone], check=True)
    cache = os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache/uv")
    variables = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "UV_CACHE_DIR": cache,
        "EMBEDGRPC_ADDRESS": "127.0.0.1:0",
        "EMBEDGRPC_LOG_FORMAT": "json",
    }
    variables |= {name: os.environ[name] for name in KEPT if name in os.environ}
    with subprocess.Popen(
        ["/bin/sh", "-c", runnable(README)["serve"]],
        cwd=clone,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        seen, address = [], ""
        try:
            for line in process.stderr or ():
                seen.append(line)
                if '"event": "serving"' in line:
                    address = json.loads(line)["address"]
                    break
            assert address, "".join(seen)
            with Client(address, timeout_s=60) as client:
                assert client.embed(["a text"]).vectors.shape == (1, 384)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)
    assert not [line for line in seen if '"level": "warning"' in line]
    installed = {path.name for path in (clone / ".venv/bin").iterdir()}
    assert "embedgrpc-client" in installed
    assert not installed & {"mypy", "ruff", "pytest", "poe"}
    status = ["/usr/bin/env", "git", "status", "--porcelain"]
    changed = subprocess.run(status, cwd=clone, capture_output=True, text=True, check=True)
    assert changed.stdout == ""
