"""Compare `embedgrpc-client bulk` with a bare stream of the same texts.

uv run python -m benchmarks.bulk [--rows N] [--rounds N]

Both run in this process, in turns: the stream counts its results, and bulk also reads the rows from
Parquet and writes the vectors to Parquet, synced. Nothing but the server's work should take time.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.processes import server
from embedgrpc.client import Client
from embedgrpc.client.cli import main as client_command
from embedgrpc.server.settings.model_settings import DEFAULT_MODEL

_WARM_UP_ROWS = 2_000


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", default=DEFAULT_MODEL.source, help="of the model")
    arguments = parser.parse_args()
    _measure(arguments.rows, arguments.rounds, arguments.source)


def _measure(rows: int, rounds: int, source_of_model: str) -> None:
    texts = [f"the tower {row} is {row % 331} metres tall" for row in range(rows)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(source=source_of_model) as served:
            address = served.target
            turns: dict[str, Callable[[list[str], Path], None]] = {
                "bare stream": lambda some, _: _stream(address, some),
                "bulk": lambda some, place: _bulk(address, some, place),
            }
            times: dict[str, list[float]] = {turn: [] for turn in turns}
            for number in range(rounds + 1):
                for turn, run in turns.items():
                    some = texts if number else texts[:_WARM_UP_ROWS]
                    place = folder / f"{turn} {number}"
                    place.mkdir()
                    source = place / "in.parquet"
                    pq.write_table(pa.table({"text": some}), source)
                    began = time.perf_counter()
                    run(some, source)
                    if number:
                        times[turn].append(time.perf_counter() - began)
    ratios = [bare / bulk for bare, bulk in zip(times["bare stream"], times["bulk"], strict=True)]
    print("| | rows/s |\n|---|---|")
    for turn, seconds in times.items():
        print(f"| {turn} | {rows / statistics.median(seconds):,.0f} |")
    print(
        f"| bulk / bare stream | {statistics.median(ratios):.2f} ({min(ratios):.2f} to"
        f" {max(ratios):.2f}) |"
    )


def _stream(address: str, texts: list[str]) -> None:
    with Client(address) as client:
        count = sum(1 for _ in client.embed_stream(texts, order="completion"))
    if count != len(texts):
        raise SystemExit(f"{count} results for {len(texts)} texts")


def _bulk(address: str, _: list[str], source: Path) -> None:
    command = ["bulk", str(source), "--output", str(source.parent / "out"), "--target", address]
    with contextlib.redirect_stderr(io.StringIO()):
        code = client_command(command)
    if code:
        raise SystemExit(f"bulk ended with {code}")


if __name__ == "__main__":
    main()
