from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the graphs of the fixtures are built, each once."""
    return tmp_path_factory.mktemp("graphs")
