import json
from pathlib import Path

import pytest

from tests.triton import environment
from tests.triton.environment import Environment, EnvironmentMissingError, find, install


@pytest.mark.triton
def test_what_is_installed_is_kept(triton_environment: Environment) -> None:
    """Installing again changes nothing, and the files found exist."""
    stamp = environment.PLACE / "installed.json"
    before = stamp.stat().st_mtime_ns
    install()
    assert stamp.stat().st_mtime_ns == before
    assert triton_environment.program.is_file()
    assert (triton_environment.python_backend / "triton_python_backend_stub").is_file()
    assert all(folder.is_dir() for folder in triton_environment.libraries)


@pytest.mark.parametrize("content", ["", "{}", '{"pins": ["of another day"], "version": "3.11"}'])
def test_what_is_not_of_todays_pins_is_not_found(content: str, tmp_path: Path) -> None:
    """The error for a missing, unfinished or old environment names the command that installs it."""
    if content:
        (tmp_path / "installed.json").write_text(content)
    with pytest.raises(EnvironmentMissingError, match="run `uv run poe triton`"):
        find(tmp_path)


def test_an_interpreter_without_a_shared_library_is_refused(tmp_path: Path) -> None:
    """The error names the library that the stub lacks, and where to get it."""
    described = {"library": "libpython3.11.so", "library_folder": "", "version": "3.11"}
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{json.dumps(described)}'\n")
    python.chmod(0o755)
    with pytest.raises(EnvironmentMissingError, match=r"no shared libpython3\.11\.so.*uv python"):
        environment._describe(python)
