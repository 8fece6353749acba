from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where graphs are kept, so that each is built once."""
    return tmp_path_factory.mktemp("graphs")
