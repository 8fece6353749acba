"""The sizes of all containers inside an object."""

from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

# Of these parts everything is looked at that they are made of.
_PACKAGES = ("embedgrpc.engine.", "embedgrpc.server.", "tests.endurance.watching")
# They count what was, and have a few keys that come once and stay.
_COUNTERS = frozenset({"outcome_counts", "reached"})


def holdings(**roots: object) -> dict[str, int]:
    """Return the sizes of all non-empty containers in these objects, by path."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    # The shortest paths first: they say the most.
    left = deque(roots.items())
    while left:
        path, one = left.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping | list | tuple | set | frozenset | deque):
            if one:
                sizes[path] = len(one)
            inside = one.items() if isinstance(one, Mapping) else enumerate(one)
            left += [(f"{path}[{key!r:.40}]", value) for key, value in inside]
        elif type(one).__module__.startswith(_PACKAGES) and not isinstance(one, Enum):
            left += [(f"{path}.{name}", value) for name, value in _attributes(one)]
    return sizes


def _attributes(one: object) -> Iterator[tuple[str, Any]]:
    names = set(vars(one)) if hasattr(one, "__dict__") else set()
    for of in type(one).__mro__:
        slots = of.__dict__.get("__slots__", ())
        names.update([slots] if isinstance(slots, str) else slots)
    for name in sorted(names - _COUNTERS):
        if hasattr(one, name):
            yield name, getattr(one, name)
