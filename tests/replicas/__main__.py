"""Restart or kill servers under load, and print what their callers saw.

uv run python -m tests.replicas roll [--times 20] [--envoy]     SIGTERM, one after the other
uv run python -m tests.replicas reload [--times 20] [--envoy]     SIGHUP with other models
uv run python -m tests.replicas kill [--times 20] [--pause-s S] [--envoy]     kill -9 of one of two
uv run python -m tests.replicas storm [--seconds 60]     every call fails: count what is retried
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.envoy.environment import find
from tests.replicas.storm import storm
from tests.replicas.trial import kill, reload, roll


def main() -> int:
    """Run a trial; return 1 if it misses its goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trial", choices=("roll", "reload", "kill", "storm"))
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--pause-s", type=float, default=3.0, help="between kills")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--envoy", action="store_true", help="balance with Envoy")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.trial == "storm":
            result = asyncio.run(storm(find(), Path(folder), seconds=arguments.seconds))
            for name, counts in result.items():
                print(f"{name}: {counts.offered} calls, {counts.attempts} attempts")
            return int(any(counts.amplification > 1.2 for counts in result.values()))
        envoy = find() if arguments.envoy else None
        where, times, callers = Path(folder), arguments.times, arguments.callers
        goal = 1.0
        if arguments.trial == "roll":
            trial = roll(where, restarts=times, envoy=envoy, callers=callers)
        elif arguments.trial == "reload":
            trial = reload(where, reloads=times, envoy=envoy, callers=callers)
        else:
            pause_s = arguments.pause_s
            trial = kill(where, kills=times, pause_s=pause_s, envoy=envoy, callers=callers)
            goal = 0.999
        done = asyncio.run(trial)
    print(f"{done.duration_s:.0f} s, {done.outcomes}, success {done.success:.5f}")
    if any(done.exit_codes):
        print(f"exit codes: {done.exit_codes}")
    return int(done.success < goal or any(done.exit_codes))


if __name__ == "__main__":
    raise SystemExit(main())
