"""All attacks."""

from tests.attacks import crowds, http, http2_floods, long_texts, memory
from tests.attacks.attack import Attack

ATTACKS: tuple[Attack, ...] = (
    *crowds.ATTACKS,
    *http.ATTACKS,
    *http2_floods.ATTACKS,
    *long_texts.ATTACKS,
    *memory.ATTACKS,
)
