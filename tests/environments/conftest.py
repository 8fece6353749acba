from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache in which each graph of the fixtures is built once."""
    return tmp_path_factory.mktemp("graphs")
