"""All attacks."""

from tests.attacks.attack import Attack

ATTACKS: tuple[Attack, ...] = ()
