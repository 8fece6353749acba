"""OpenTelemetry's propagators, without those of `OTEL_PROPAGATORS` that are not installed.

The library creates them when it is imported, and the import fails if one is missing. Some clusters
set the variable for every pod, even for those that are not traced.
"""

import os
from importlib.metadata import entry_points

_VARIABLE = "OTEL_PROPAGATORS"
_NONE = "none"


def _remove_missing() -> tuple[str, ...]:
    """Remove from the variable what is not installed, and return it."""
    named = [name.strip() for name in os.environ.get(_VARIABLE, "").split(",") if name.strip()]
    if not named:
        # The library would take blanks and commas for a name.
        os.environ.pop(_VARIABLE, None)
        return ()
    installed = {one.name for one in entry_points(group="opentelemetry_propagator")}
    missing = tuple(name for name in named if name not in installed and name.lower() != _NONE)
    if missing:
        os.environ[_VARIABLE] = ",".join([one for one in named if one not in missing] or [_NONE])
    return missing


MISSING_PROPAGATORS = _remove_missing()

from opentelemetry import propagate  # noqa: E402 - it reads the environment when it is loaded

__all__ = ["MISSING_PROPAGATORS", "propagate"]
