"""Stop a server under load again and again, and print the statuses of its calls.

uv run python -m tests.stops [--stops N] [--callers N] [--pause-ms MS]

CANCELLED means that the server lost the call: clients do not retry it. In the end each caller gets
UNAVAILABLE, as there is no other server.
"""

import argparse
import asyncio
import collections
import tempfile
from pathlib import Path

from tests.stops.trial import stop_under_load


def main() -> int:
    """Run the stops; return 1 if a call was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--pause-ms", type=float, default=0.0, help="between calls of one caller")
    arguments = parser.parse_args()
    total: collections.Counter[str] = collections.Counter()
    lossy = 0
    with tempfile.TemporaryDirectory() as cache_dir:
        for number in range(arguments.stops):
            stop = asyncio.run(
                stop_under_load(
                    callers=arguments.callers,
                    pause_ms=arguments.pause_ms,
                    cache_dir=Path(cache_dir),
                )
            )
            total.update(stop.outcomes)
            lost = stop.outcomes.get("CANCELLED", 0)
            lossy += lost > 0
            if lost or stop.exit_code:
                print(f"stop {number}: exit {stop.exit_code}, {stop.outcomes}", flush=True)
    print(f"{arguments.stops} stops, {lossy} of them lost calls: {dict(total)}")
    return int(lossy > 0)


if __name__ == "__main__":
    raise SystemExit(main())
