"""All attacks."""

from tests.attacks import crowds, http2_floods
from tests.attacks.attack import Attack

ATTACKS: tuple[Attack, ...] = (
    *crowds.ATTACKS,
    *http2_floods.ATTACKS,
)
