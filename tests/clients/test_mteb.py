"""MTEB evaluates a served model as it evaluates the same model in its own process."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from embedgrpc.models.sources.source import find_local
from embedgrpc.server.settings.model_settings import default_model
from tests.clients.environment import PROGRAMS
from tests.reference.environment import EnvironmentMissingError, find_packages, find_python
from tests.server.service import CROSS, serving, settings_for

pytestmark = [pytest.mark.mteb, pytest.mark.long]


def _find_python() -> Path:
    try:
        python = find_python()
    except EnvironmentMissingError as obstacle:
        pytest.skip(str(obstacle))
    if not (find_packages(python) / "mteb").is_dir():
        pytest.skip(f"{python} has no mteb: run `uv run poe reference`")
    return python


async def test_scores_are_those_of_the_model(cache_dir: Path) -> None:
    """Of eight kinds of tasks; a cross-encoder ranks over HTTP, too."""
    python = _find_python()
    model = default_model()
    files = find_local(model.source)
    assert files is not None
    settings = settings_for(model, CROSS, cache_dir=cache_dir, http_address="127.0.0.1:0")
    async with serving(settings) as service:
        asked = {
            "url": f"http://{service.server.http_address}",
            "model": model.name,
            "reranker": CROSS.id,
            "folder": str(files.folder),
        }
        done = await asyncio.to_thread(
            subprocess.run,
            [python, PROGRAMS / "mteb_tasks.py"],
            input=json.dumps(asked),
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])
    assert scores["served"] == pytest.approx(scores["local"], abs=1e-5)
    assert len(scores["served"]) == 8
    assert 0 < scores["reranked"] <= 1
