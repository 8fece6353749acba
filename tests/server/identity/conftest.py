from pathlib import Path

import pytest

from tests.server.identity.callers import KeyFile
from tests.server.identity.issuer import Issuer


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    """A file of API keys, still without any."""
    return KeyFile(tmp_path)


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    """An issuer of tokens, which no test changes."""
    one = Issuer("RS256")
    one.add("ec", "ES256")
    one.add("ed", "EdDSA")
    return one
