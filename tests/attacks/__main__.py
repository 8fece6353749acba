"""Attacks a server and prints the effect on an innocent caller.

uv run python -m tests.attacks [NAME...] [--seconds S] [--rounds N]

With rounds, the same attack is also aimed at a process that does nothing, in turns. What callers
wait beyond that is the server's doing; the rest is the attacker's, who takes CPU time from all.
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
    parser.add_argument("--rounds", type=int, default=0, help="turns with and without the server")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {attack.name for attack in ATTACKS}:
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    print(
        "| attack | it did | server CPU quiet/attacked | caller | quiet p50/p99 ms"
        " | control p50/p99 | attacked p50/p99/max | p99 / quiet, / control | failed | RSS MiB |"
    )
    print("|" + "---|" * 10)
    with tempfile.TemporaryDirectory() as cache_dir:
        for attack in ATTACKS:
            if arguments.names and attack.name not in arguments.names:
                continue
            outcome = asyncio.run(
                measure(
                    attack,
                    arguments.seconds,
                    cache_dir=Path(cache_dir),
                    quiet_s=_QUIET_S,
                    rounds=arguments.rounds,
                )
            )
            rss = "/".join(
                f"{size / MIB:.0f}"
                for size in (
                    outcome.rss_before_bytes,
                    outcome.rss_peak_bytes,
                    outcome.rss_after_bytes,
                )
            )
            for name, caller in (("gRPC", outcome.grpc), ("HTTP", outcome.http)):
                if caller is None:
                    continue
                cells = (
                    f"{attack.name}: {attack.what}",
                    "; ".join(outcome.done),
                    f"{outcome.quiet_server_s:.0%}/{outcome.server_s:.0%}",
                    name,
                    *_show(caller),
                    str(len(caller.failures)),
                    rss,
                )
                print(f"| {' | '.join(cells)} |", flush=True)


def _show(caller: Phases) -> tuple[str, str, str, str]:
    during = caller.during
    return (
        _quantiles(caller.quiet),
        _quantiles(caller.control) if caller.control.values_s else "",
        f"{_quantiles(during)}/{during.max_s * 1e3:.0f}",
        ", ".join(
            f"{during.p99_ms / one.p99_ms:.1f}"
            for one in (caller.quiet, caller.control)
            if one.values_s
        ),
    )


def _quantiles(latencies: Latencies) -> str:
    return f"{latencies.p50_ms:.1f}/{latencies.p99_ms:.1f}"


if __name__ == "__main__":
    main()
