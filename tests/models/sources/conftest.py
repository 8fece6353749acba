from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.sources.hub_host import Host
from tests.models.sources.hub_server import Hub, serve_hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub without repositories."""
    with serve_hub() as served:
        yield served


@pytest.fixture
def host(tmp_path: Path, cache_dir: Path, hub: Hub) -> Host:
    """A machine with an empty cache."""
    return Host(tmp_path, cache_dir, hub.url)
