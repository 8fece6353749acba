from pathlib import Path

import pytest

from tests.attacks.attack import MIB, Attack
from tests.attacks.catalog import ATTACKS
from tests.attacks.trial import measure

pytestmark = pytest.mark.long


RSS_GROWTH_MAX = 128 * MIB
# A call that had to wait for the attack's end took about as long as what was left of it.
WAIT_SHARE_MAX = 0.8


@pytest.mark.parametrize(
    "attack", [one for one in ATTACKS if one.in_suite], ids=lambda attack: attack.name
)
async def test_others_are_served(attack: Attack, cache_dir: Path) -> None:
    """An innocent caller is answered all along, and the server's memory stays small."""
    outcome = await measure(attack, attack.test_s, cache_dir=cache_dir, quiet_s=1.0)
    for caller in outcome.callers:
        assert not caller.failures
        assert caller.during.values_s, "no call was answered that began during the attack"
        assert caller.during.max_s < max(WAIT_SHARE_MAX * outcome.attack_s, 1.0), outcome
    assert outcome.rss_growth_bytes < RSS_GROWTH_MAX, outcome
