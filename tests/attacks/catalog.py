"""All attacks."""

from tests.attacks import crowds, http2_floods, long_texts
from tests.attacks.attack import Attack

ATTACKS: tuple[Attack, ...] = (
    *crowds.ATTACKS,
    *http2_floods.ATTACKS,
    *long_texts.ATTACKS,
)
