"""The benchmarks run; their figures are not looked at: these machines are noisy."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (
            ["throughput", "--rounds", "1", "--texts", "8"],
            ["| passages | served, stream |", "| short | served, unary,", "| mixed | served: real"],
        ),
        (["latency", "--calls", "5"], ["| about 100 words each |", "| beside 2 bulk streams |"]),
        (
            ["startup", "--rounds", "1", "--documents", "8"],
            ["| to SERVING, graph in the cache |", "| after 8 abstracts |"],
        ),
    ],
    ids=["throughput", "latency", "startup"],
)
def test_a_benchmark_prints_its_table(arguments: list[str], rows: list[str]) -> None:
    """A short run ends well and prints the rows that the figures are taken from."""
    name, *flags = arguments
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *flags],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for row in rows:
        assert row in done.stdout
