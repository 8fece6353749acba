"""What the page about integrations shows is what happens."""

import asyncio
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.clients.environment import ROOT
from tests.server.service import PATIENCE_S

PAGE = ROOT / "docs" / "integrations.md"
ADDRESS = "127.0.0.1:50051"
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
}
NEED_TORCH = ("MTEB and sentence-transformers", "txtai")
SNIPPETS = [
    pytest.param(
        snippet,
        "frameworks-torch" if title in NEED_TORCH else "frameworks",
        id=f"{title}-{number}",
    )
    for title, snippets in SECTIONS.items()
    for number, snippet in enumerate(snippets)
]


@pytest.mark.clients
@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE_S)
@pytest.mark.parametrize(("snippet", "frameworks"), SNIPPETS, indirect=["frameworks"])
async def test_each_snippet_runs(
    snippet: str, frameworks: Path, served: Mapping[str, str], tmp_path: Path
) -> None:
    """As it is, but for the address, and prints something."""
    assert ADDRESS in snippet
    process = await asyncio.create_subprocess_exec(
        *(str(frameworks), "-c", snippet.replace(ADDRESS, served["SERVED_TARGET"])),
        cwd=tmp_path,
        env=served,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    assert output


def test_the_page_has_every_extra() -> None:
    """Each is installed by a command of the page."""
    text = (ROOT / "clients/python/pyproject.toml").read_text("utf-8")
    extras = set(tomllib.loads(text)["project"]["optional-dependencies"]) - {"bulk"}
    shown = re.findall(r"embedgrpc-client\[([\w,-]+)\]", PAGE.read_text("utf-8"))
    assert {name for names in shown for name in names.split(",")} == extras
