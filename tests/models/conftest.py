from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.models.runner import FIXTURES, Runner


@pytest.fixture(scope="session")
def load(cache_dir: Path) -> Callable[[str | Path], Runner]:
    """Return a function that loads models, and keeps them for all tests."""

    @cache
    def load_once(source: str | Path) -> Runner:
        return Runner.load(source, cache_dir)

    return load_once


@pytest.fixture(scope="session")
def bert_mean(load: Callable[[str | Path], Runner]) -> Runner:
    """The smallest embedding model."""
    return load(FIXTURES / "bert-mean")
