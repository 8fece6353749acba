"""Kill the client and the server of a bulk run, cut its network, and look for what was lost.

uv run python -m tests.bulk.endurance [--rows N] [--seed N]

The client is killed five times, the server three times, the network is cut twice. Then each id must
be there once, with the vector of an undisturbed run.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.bulk.trial import Findings, try_bulk

# Batches differ between the runs, and sums of float32 with them.
DIFFERENCE_MAX = 1e-5


def main() -> int:
    """Run it; return 1 if something was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        findings = asyncio.run(try_bulk(arguments.rows, Path(folder), seed=arguments.seed))
    for name, value in vars(findings).items():
        sys.stdout.write(f"{name}: {value}\n")
    return 0 if is_complete(findings) else 1


def is_complete(findings: Findings) -> bool:
    """Return whether every id is there once with its vector."""
    lost = findings.missing + findings.repeated + findings.failed
    return lost == 0 and findings.difference_max <= DIFFERENCE_MAX


if __name__ == "__main__":
    raise SystemExit(main())
