"""The examples do what they show, over a connection that is lost once."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.examples import COMPILED, EXAMPLES, PYTHON, Example, environment
from tests.endurance.relay import relaying
from tests.service.conftest import running_server

# Of the 3 MB that the 2,000 vectors take.
_CUT_AFTER_BYTES = 1_000_000


@pytest.fixture(scope="module")
def target(cache_dir: Path) -> Iterator[str]:
    """The address of a server with its defaults."""
    with running_server(cache_dir=cache_dir) as address:
        yield address


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(PYTHON, marks=pytest.mark.slow),
        *(pytest.param(one, marks=pytest.mark.long) for one in COMPILED),
    ],
    ids=lambda one: one.name,
)
async def test_an_example_prints_what_its_readme_shows(example: Example, target: str) -> None:
    """It embeds, resends what a lost stream left unanswered, ranks, and reads an error."""
    if example.missing_tools:
        pytest.skip(f"not installed: {', '.join(example.missing_tools)}")
    if not example.is_installed:
        if os.environ.get("CI"):
            pytest.fail("the libraries of this example are missing: uv run poe examples")
        pytest.skip("its libraries are not installed: uv run poe examples")
    offline = environment()
    for command in example.build:
        await asyncio.to_thread(
            subprocess.run, command, cwd=example.folder, env=offline, check=True
        )
    async with relaying(target, cut_after_bytes=_CUT_AFTER_BYTES) as relay:
        process = await asyncio.create_subprocess_exec(
            *example.run_with(relay.address),
            cwd=example.folder,
            env=offline,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    readme = (EXAMPLES / "README.md").read_text("utf-8")
    (shown,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    # Maven resets the colours of a terminal that is none.
    printed = output.decode().replace("\x1b[0m", "")
    assert printed == shown.replace("reconnects: 0", "reconnects: 1")


def test_every_example_is_run() -> None:
    """Each folder of the examples is one that the tests know, and has a README."""
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    # Those of data engines have environments of their own: tests/data_engines runs them.
    assert folders == {one.name for one in (PYTHON, *COMPILED)} | {"engines"}
    assert all((EXAMPLES / name / "README.md").is_file() for name in folders)
