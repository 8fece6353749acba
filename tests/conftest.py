"""What tests of several folders start."""

import os

import pytest

from tests.triton.environment import Environment, EnvironmentMissingError, find


@pytest.fixture(scope="session")
def triton_environment() -> Environment:
    """An installed tritonserver; the checks install it, elsewhere tests do without."""
    try:
        return find()
    except EnvironmentMissingError as obstacle:
        if os.environ.get("CI"):
            pytest.fail(str(obstacle))
        pytest.skip(str(obstacle))
