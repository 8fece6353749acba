"""Compare the client's `encode` with a bare loop over its stream, on the same texts, in turns.

uv run python -m benchmarks.client_encode [--texts N] [--rounds N] [--source FOLDER]
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks import workloads
from benchmarks.processes import server
from embedgrpc.client import Client
from embedgrpc.server.settings.model_settings import DEFAULT_MODEL

_SEED = 17
_WORDS = (4, 9)
_WARM_UP_TEXTS = 256


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=100_000, help="short texts of a round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--source", default=DEFAULT_MODEL.source, help="the model")
    arguments = parser.parse_args()
    texts = short_texts(arguments.texts)
    seconds: dict[str, list[float]] = {"raw embed_stream": [], "encode": []}
    with server(source=arguments.source) as served, Client(served.target, timeout_s=600) as client:
        client.encode(texts[:_WARM_UP_TEXTS])
        ways: dict[str, Callable[[], object]] = {
            "raw embed_stream": partial(stream, client, texts),
            "encode": partial(encode, client, texts),
        }
        for number in range(arguments.rounds):
            # The order alternates, so that drift of the machine cancels out.
            for name in ways if number % 2 else reversed(ways):
                began = time.perf_counter()
                ways[name]()
                seconds[name].append(time.perf_counter() - began)
    _print(len(texts), seconds)


def short_texts(count: int) -> list[str]:
    """Return texts of a few words, no two equal: the server runs equal texts once."""
    chooser = random.Random(_SEED)  # noqa: S311 - texts, not secrets
    words = " ".join(workloads.queries().values()).split()
    return [
        f"{' '.join(chooser.choices(words, k=chooser.randint(*_WORDS)))} {number}"
        for number in range(count)
    ]


def stream(client: Client, texts: list[str]) -> None:
    """Take every vector from one stream, and keep none."""
    answered = sum(
        result.error is None for result in client.embed_stream(texts, order="completion")
    )
    if answered != len(texts):
        raise RuntimeError(f"{answered} of {len(texts)} texts were embedded")


def encode(client: Client, texts: list[str]) -> None:
    """Fill one array."""
    vectors = client.encode(texts)
    if len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise RuntimeError("the array is not complete")


def _print(count: int, seconds: dict[str, list[float]]) -> None:
    raw, encoded = seconds["raw embed_stream"], seconds["encode"]
    ratios = [one / other for one, other in zip(raw, encoded, strict=True)]
    print("| contender | texts | texts/s, median |")
    print("|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {count} | {count / statistics.median(times):.0f} |")
    median, least, most = statistics.median(ratios), min(ratios), max(ratios)
    print(f"| encode / raw embed_stream | | {median:.3f} [{least:.3f}, {most:.3f}] |")


if __name__ == "__main__":
    main()
