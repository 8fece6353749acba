import os
from pathlib import Path

import pytest

from tests.envoy.environment import EnvironmentMissingError, find


@pytest.fixture(scope="session")
def envoy() -> Path:
    """The program; the checks install it, elsewhere tests do without."""
    try:
        return find()
    except EnvironmentMissingError as obstacle:
        if os.environ.get("CI"):
            pytest.fail(str(obstacle))
        pytest.skip(str(obstacle))
