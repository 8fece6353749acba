"""Measure bursts of calls after a quiet time: how many succeed, and how fast.

uv run python -m benchmarks.bursts [--rounds N] [--deadline-s S] [--flags FLAGS]
"""

import argparse
import asyncio
import itertools
import shlex
from collections import Counter

from benchmarks.figures import counts, milliseconds, percentile
from benchmarks.generator import Generator, run
from benchmarks.processes import RunningServer, peak_rss_bytes, server
from benchmarks.unary_calls import UnaryCalls, embed_calls
from benchmarks.workloads import Workload, passages, short

# 150 words of the texts have about 200 tokens.
_LONG_WORDS = 150


def main() -> None:
    """Measure, and print a row for each burst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="bursts of each kind")
    parser.add_argument("--long", type=int, default=100, help="calls of a burst of long texts")
    parser.add_argument("--short", type=int, default=1000, help="calls of a burst of short texts")
    parser.add_argument("--deadline-s", type=float, default=60, help="deadline of each call")
    parser.add_argument(
        "--quiet-s", type=float, default=2, help="quiet time before each burst, in seconds"
    )
    parser.add_argument("--flags", default="", help="flags of the server")
    arguments = parser.parse_args()
    with server(*shlex.split(arguments.flags)) as served:
        run(_measure(served, arguments))


async def _measure(served: RunningServer, arguments: argparse.Namespace) -> None:
    print("| burst | answered | refused | others | p50 | p99 | peak memory, MB |")
    print(f"{'|---' * 7}|")
    bursts = ((arguments.long, _long_calls()), (arguments.short, embed_calls("short", short())))
    for size, calls in bursts:
        async with Generator(served, calls, deadline_s=arguments.deadline_s) as generator:
            await generator.warm_up(arguments.quiet_s)
            for _ in range(arguments.rounds):
                await asyncio.sleep(arguments.quiet_s)
                window = await generator.open_loop([0.0] * size, seconds=0.0)
                codes = Counter(one.code.name for one in window.outcomes)
                answered, refused = codes.pop("OK", 0), codes.pop("RESOURCE_EXHAUSTED", 0)
                times_s = [one.done_s for one in window.outcomes if one.code.name == "OK"]
                cells = (
                    f"{size} times {calls.what}",
                    f"{answered}",
                    f"{refused}",
                    counts(codes),
                    milliseconds(percentile(times_s, 50)),
                    milliseconds(percentile(times_s, 99)),
                    f"{peak_rss_bytes(served.pid) / 1e6:,.0f}",
                )
                print(f"| {' | '.join(cells)} |", flush=True)


def _long_calls() -> UnaryCalls:
    texts = passages().texts
    glued = tuple(
        " ".join(f"{one} {other}".split()[:_LONG_WORDS])
        for one, other in itertools.pairwise((*texts, texts[0]))
    )
    return embed_calls("long", Workload("long", f"about {_LONG_WORDS} words", glued))


if __name__ == "__main__":
    main()
