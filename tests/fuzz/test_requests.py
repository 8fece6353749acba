from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.fuzzed_server import FuzzedServer, fuzzed_server
from tests.fuzz.requests import CHECKS, FEW, METHODS, MODELS


@pytest.fixture(scope="module")
def server(cache_dir: Path) -> Iterator[FuzzedServer]:
    """A server for all methods, which must serve a plain call at the end."""
    with fuzzed_server(cache_dir, *MODELS) as running:
        yield running
        running.check()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("path", METHODS)
def test_no_request_is_an_incident(server: FuzzedServer, path: str, check: str) -> None:
    """Requests succeed or are refused with details: never UNKNOWN, never INTERNAL."""
    CHECKS[check](server, path, FEW)
