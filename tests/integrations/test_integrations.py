"""Frameworks in an environment of their own, each with its suite in the folder `programs`."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.reference.environment import PINS
from tests.server.service import PATIENCE_S

PROGRAMS = Path(__file__).parent / "programs"
SUITES = sorted(path.stem for path in PROGRAMS.glob("*_suite.py"))
NEED_TORCH = ("mteb_suite", "sentence_transformers_suite", "txtai_suite")


@pytest.mark.clients
@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE_S)
@pytest.mark.parametrize(
    ("suite", "frameworks"),
    [
        pytest.param(suite, "frameworks-torch" if suite in NEED_TORCH else "frameworks", id=suite)
        for suite in SUITES
    ],
    indirect=["frameworks"],
)
async def test_the_suite_of_a_framework_passes(
    suite: str, frameworks: Path, served: Mapping[str, str], tmp_path: Path
) -> None:
    """It has the values, the errors and the settings of the plain client."""
    process = await asyncio.create_subprocess_exec(
        *(str(frameworks), "-m", "pytest", "-c", str(PROGRAMS / "pytest.ini")),
        str(PROGRAMS / f"{suite}.py"),
        cwd=tmp_path,
        env=served,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()


def test_what_needs_torch_has_the_versions_of_the_reference() -> None:
    """So that installers share the files, which are several gigabytes."""
    lines = (PROGRAMS.parent / "requirements-torch.txt").read_text("utf-8").splitlines()
    found = {line for line in lines if line.startswith(("mteb", "sentence-", "torch", "transform"))}
    assert len(found) == 4
    assert found <= set(PINS)
