from pathlib import Path

import pytest

from tests.bulk.endurance import is_complete
from tests.bulk.trial import CLIENT_KILLS, CUTS, SERVER_KILLS, try_bulk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


async def test_a_disturbed_run_loses_nothing(tmp_path: Path) -> None:
    """Client and server killed, the network cut: each id is there once, with its vector."""
    findings = await try_bulk(4_000, tmp_path)
    assert is_complete(findings), findings
    disturbances = (findings.client_kills, findings.server_kills, findings.cuts)
    assert disturbances == (CLIENT_KILLS, SERVER_KILLS, CUTS)
