"""OpenTelemetry's propagators, without those of `OTEL_PROPAGATORS` that are not installed.

The library makes them when it is loaded, and cannot be loaded where one is missing. Whole clusters
have the variable set for every pod, also for those that are not traced.
"""

import os
from importlib.metadata import entry_points

_VARIABLE = "OTEL_PROPAGATORS"
_NONE = "none"


def _leave_out_missing() -> tuple[str, ...]:
    """Take out of the variable what is not installed; return that."""
    named = [name.strip() for name in os.environ.get(_VARIABLE, "").split(",") if name.strip()]
    if not named:
        # Blanks and commas alone name nothing: the library takes them for a name.
        os.environ.pop(_VARIABLE, None)
        return ()
    installed = {one.name for one in entry_points(group="opentelemetry_propagator")}
    missing = tuple(name for name in named if name not in installed and name.lower() != _NONE)
    if missing:
        os.environ[_VARIABLE] = ",".join([one for one in named if one not in missing] or [_NONE])
    return missing


MISSING_PROPAGATORS = _leave_out_missing()

from opentelemetry import propagate  # noqa: E402 - it reads its environment when it is loaded

__all__ = ["MISSING_PROPAGATORS", "propagate"]
