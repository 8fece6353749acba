import tempfile
from pathlib import Path

import pytest

from tests.soak.run import Plan, soak

pytestmark = pytest.mark.long


# Of these every soak, however short, sees some.
KINDS = ("embed OK", "be_refused INVALID_ARGUMENT", "cancel OK", "stream OK")


async def test_a_short_soak() -> None:
    """The long run's machinery works, and a server under mixed load holds nothing afterwards."""
    # On a busy machine, few calls are made in a short time.
    for seconds in (6.0, 30.0, 120.0):
        with tempfile.TemporaryDirectory() as folder:
            plan = Plan(
                seconds=seconds, warm_up_s=2.0, interval_s=0.2, cache_dir=Path(folder), seed="short"
            )
            summary = await soak(plan)
        if all(summary.calls.get(kind) for kind in KINDS):
            break
    assert all(summary.calls.get(kind) for kind in KINDS), summary.calls
    assert not any(kind.endswith(("UNKNOWN", "INTERNAL")) for kind in summary.calls), summary.calls
    assert summary.after.descriptors <= summary.before.descriptors
    assert summary.exit_code == 0
