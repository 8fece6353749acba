"""Measure the retrieval quality of the served vectors on the Cranfield collection.

uv run python -m benchmarks.quality
"""

import argparse
import json

from benchmarks.processes import server
from benchmarks.retrieval import read_judgements, search_quality
from benchmarks.workloads import CRANFIELD, documents, queries
from embedgrpc.client import Client


def main() -> None:
    """Embed the collection through StreamEmbed, search exactly, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weight-type", default="float32", choices=("float32", "int8"))
    weights = parser.parse_args().weight_type
    expected = json.loads((CRANFIELD / "expected.json").read_text("utf-8"))
    with server(weight_type=weights) as served, Client(served.target, timeout_s=600) as client:
        figures = search_quality(client, documents(), queries(), read_judgements())
    print("| figure | reference | served | difference |")
    print("|---|---|---|---|")
    for name, reference in expected["figures"].items():
        print(
            f"| {name} | {reference:.4f} | {figures[name]:.4f} | {figures[name] - reference:+.4f} |"
        )
    worst = max(abs(figures[name] - value) for name, value in expected["figures"].items())
    if weights == "float32" and worst > expected["tolerance"]:
        raise SystemExit(f"the served vectors differ by {worst:.4f} from the reference")


if __name__ == "__main__":
    main()
