"""Attacks a server and prints the effect on an innocent caller.

uv run python -m tests.attacks [NAME...] [--seconds S]
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.attacks.attack import MIB, Latencies, Phases
from tests.attacks.catalog import ATTACKS
from tests.attacks.trial import measure

_QUIET_S = 5.0


def main() -> None:
    """Run the named attacks, or all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=" ".join(attack.name for attack in ATTACKS))
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each attack lasts")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {attack.name for attack in ATTACKS}:
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    print(
        "| attack | it did | quiet p50/p99 ms | attacked p50/p99/max ms"
        " | over HTTP quiet | attacked | failed | RSS MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache_dir:
        for attack in ATTACKS:
            if arguments.names and attack.name not in arguments.names:
                continue
            outcome = asyncio.run(
                measure(attack, arguments.seconds, cache_dir=Path(cache_dir), quiet_s=_QUIET_S)
            )
            rss = "/".join(
                f"{size / MIB:.0f}"
                for size in (
                    outcome.rss_before_bytes,
                    outcome.rss_peak_bytes,
                    outcome.rss_after_bytes,
                )
            )
            failed = sum(len(caller.failures) for caller in outcome.callers)
            cells = (
                f"{attack.name}: {attack.what}",
                outcome.done,
                *_show(outcome.grpc),
                *(_show(outcome.http) if outcome.http else ("", "")),
                str(failed),
                rss,
            )
            print(f"| {' | '.join(cells)} |", flush=True)


def _show(caller: Phases) -> tuple[str, str]:
    during = caller.during
    return _quantiles(caller.quiet), f"{_quantiles(during)}/{during.max_s * 1e3:.0f}"


def _quantiles(latencies: Latencies) -> str:
    return f"{latencies.p50_ms:.1f}/{latencies.p99_ms:.1f}"


if __name__ == "__main__":
    main()
