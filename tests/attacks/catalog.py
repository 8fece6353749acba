"""All attacks."""

from tests.attacks import memory
from tests.attacks.attack import Attack

ATTACKS: tuple[Attack, ...] = (*memory.ATTACKS,)
