"""The Python client of embedgrpc: turn text into vectors, rank documents by relevance.

The public names are those of `embedgrpc.client.public`. They are imported when first used, so
that a command which only prints its help loads neither gRPC nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedgrpc.client.public import *  # noqa: F403 -- its `__all__` lists the names


def __getattr__(name: str) -> Any:
    public = import_module("embedgrpc.client.public")
    if name != "__all__" and name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(public, name)


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))
