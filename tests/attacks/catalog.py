"""All attacks."""

from tests.attacks import long_texts
from tests.attacks.attack import Attack

ATTACKS: tuple[Attack, ...] = (*long_texts.ATTACKS,)
