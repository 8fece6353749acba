"""Where an integration finds a key that it must not write down."""

import os
from collections.abc import Callable
from typing import Final, TypeAlias

API_KEY_VARIABLE: Final = "EMBEDGRPC_API_KEY"

# A key, or a function that returns one: integrations keep secrets in the types of their frameworks.
ApiKey: TypeAlias = str | Callable[[], str | None]


def key_from_environment(variable: str = API_KEY_VARIABLE) -> str | None:
    """Return the key in an environment variable; None if it is not set or empty."""
    return os.environ.get(variable) or None
