"""All attacks."""

from tests.attacks import http2_floods
from tests.attacks.attack import Attack

ATTACKS: tuple[Attack, ...] = (*http2_floods.ATTACKS,)
