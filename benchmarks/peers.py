"""Compare a server with libraries that embed texts, on the same weights and cores, in turns.

uv run poe clients && uv run python -m benchmarks.peers [--rounds N] [--fastembed PYTHON]
    [--infinity PYTHON] [--tei PROGRAM]

The server has float32 and int8 weights; `encode` of the client calls it from a process of its own.
sentence-transformers runs on PyTorch, from the environment that `poe clients` installs. fastembed
and Infinity run where an interpreter that has them is given, text-embeddings-inference (TEI) where
its program is given, built for ONNX Runtime and gRPC. fastembed and TEI run the server's graph.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import peer_plot, workloads
from benchmarks.peer_contenders import Contender, prepare_libraries, prepare_servers, prepare_tei
from benchmarks.peer_times import Times
from benchmarks.workloads import Workload
from embedgrpc.server.settings.model_settings import DEFAULT_MODEL
from tests.clients.environment import EnvironmentMissingError, find_frameworks

_OURS = ("server, float32", "server, int8")
_LEAST_COSINE = 0.9999
# Below it, the int8 weights are not of the same model.
_LEAST_COSINE_INT8 = 0.98
_WARM_UP_CALLS = 10
_HEADER = """\
| work | contender | speed | server / it | int8 server / it | CPU of a text | server / it \
| int8 server / it |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measure in turns, and print two tables."""
    parsed = _parse()
    whole = (workloads.passages(), workloads.short())
    lists = [replace(one, texts=one.texts[: parsed.texts or None]) for one in whole]
    with ExitStack() as resources:
        starts = list(prepare_servers(parsed.source))
        if parsed.tei:
            starts.append(prepare_tei(resources, parsed.source, parsed.tei))
        starts += prepare_libraries(resources, parsed.source, parsed.pythons)
        for start in starts:
            # The files are in the machine's memory for the start that counts.
            with start():
                pass
        contenders = [resources.enter_context(start()) for start in starts]
        for contender in contenders:
            for workload in lists:
                contender.loop.ask(do="prepare", name=workload.name, texts=workload.texts)
        cosines = _lowest_cosines(contenders, lists)
        print(_HEADER)
        done_lists, done_calls = [], []
        for workload in lists:
            times = _take_turns(contenders, parsed.rounds, partial(_embed_list, workload))
            _print(f"{workload.what}, a list", times, "{:,.1f} texts/s", 1)
            done_lists.append((workload.what, times))
        for workload in lists:
            call = partial(_call, workload, min(parsed.calls, len(workload.texts)))
            for contender in contenders:
                partial(_call, workload, min(_WARM_UP_CALLS, len(workload.texts)))(0, contender)
            times = _take_turns(contenders, parsed.rounds, partial(call, parsed.interval_ms / 1e3))
            _print(f"{workload.what}, lone, p50", times, "{:.2f} ms", 1e3)
            done_calls.append((workload.what, times))
        print("\n| contender | start to the first vector | peak memory, MB | lowest cosine |")
        print("|---|---|---|---|")
        for contender in contenders:
            memory = " + ".join(f"{size / 1e6:.0f}" for size in contender.peak_rss_bytes())
            cosine = cosines[contender.name]
            print(f"| {contender.name} | {contender.start_s:.2f} s | {memory} | {cosine:.6f} |")
    if parsed.plot:
        peer_plot.plot(parsed.plot, parsed.title, done_lists, done_calls)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--texts", type=int, default=0, help="texts of a list; 0 for all")
    parser.add_argument("--calls", type=int, default=25, help="lone calls in a round")
    parser.add_argument("--interval-ms", type=float, default=100, help="time between two of them")
    parser.add_argument("--source", default=DEFAULT_MODEL.source, help="the model")
    parser.add_argument("--sentence-transformers", metavar="PYTHON", help="an interpreter with it")
    parser.add_argument("--fastembed", metavar="PYTHON", help="likewise")
    parser.add_argument("--infinity", metavar="PYTHON", help="likewise")
    parser.add_argument("--tei", metavar="PROGRAM", help="text-embeddings-router, with gRPC")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an SVG file to write")
    parser.add_argument("--title", default="", help="the title of the plot")
    parsed = parser.parse_args()
    parsed.pythons = {
        "sentence-transformers": parsed.sentence_transformers,
        "fastembed": parsed.fastembed,
        "infinity": parsed.infinity,
    }
    if parsed.sentence_transformers is None:
        try:
            python = find_frameworks("frameworks-torch")
        except EnvironmentMissingError as obstacle:
            parser.error(str(obstacle))
        parsed.pythons["sentence-transformers"] = str(python)
    parsed.pythons = {name: python for name, python in parsed.pythons.items() if python}
    return parsed


def _lowest_cosines(contenders: Sequence[Contender], lists: Sequence[Workload]) -> dict[str, float]:
    """Compare the vectors of all contenders with those of the first, text by text.

    Raises:
        SystemExit: One of them has other vectors, so its speed says nothing.
    """
    lowest = {contender.name: 1.0 for contender in contenders}
    for workload in lists:
        base = None
        for contender in contenders:
            answer = contender.loop.ask(do="vectors", name=workload.name)
            vectors = np.asarray(answer["vectors"], np.float64)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            base = vectors if base is None else base
            cosine = float((vectors * base).sum(axis=1).min())
            lowest[contender.name] = min(lowest[contender.name], cosine)
    for name, cosine in lowest.items():
        if not cosine >= (_LEAST_COSINE_INT8 if name == _OURS[1] else _LEAST_COSINE):
            raise SystemExit(f"{name} has other vectors: the cosine of a text is {cosine:.6f}")
    return lowest


def _take_turns(
    contenders: Sequence[Contender],
    rounds: int,
    measure: Callable[[Contender], tuple[float, float]],
) -> dict[str, Times]:
    """Measure all contenders in each round; the vectors that were compared warmed them up."""
    times = {contender.name: Times() for contender in contenders}
    for number in range(rounds):
        # The order alternates, so that drift of the machine cancels out.
        for contender in contenders[:: 1 if number % 2 else -1]:
            speed, cpu = measure(contender)
            times[contender.name].speeds.append(speed)
            times[contender.name].cpu_s.append(cpu)
    return times


def _embed_list(workload: Workload, contender: Contender) -> tuple[float, float]:
    """Return texts per second, and the CPU seconds of a text."""
    count = len(workload.texts)
    before = contender.cpu_s()
    seconds = contender.loop.ask(do="all", name=workload.name)["seconds"]
    return count / seconds, (contender.cpu_s() - before) / count


def _call(
    workload: Workload, calls: int, interval_s: float, contender: Contender
) -> tuple[float, float]:
    """Return the median seconds of calls of one text, and their CPU seconds."""
    before, began = contender.cpu_s(), time.perf_counter()
    latencies = []
    for number in range(calls):
        time.sleep(max(began + number * interval_s - time.perf_counter(), 0))
        latencies.append(contender.loop.ask(do="one", name=workload.name, number=number)["seconds"])
    # Threads may spin for a while after the last one.
    time.sleep(max(began + calls * interval_s - time.perf_counter(), 0))
    return statistics.median(latencies), (contender.cpu_s() - before) / calls


def _print(work: str, times: dict[str, Times], speed: str, unit: float) -> None:
    for name, theirs in times.items():
        cells = [work, name, speed.format(statistics.median(theirs.speeds) * unit)]
        cells += [_ratio(times[ours].speeds, theirs.speeds) for ours in _OURS]
        cells.append(f"{statistics.median(theirs.cpu_s) * 1e3:.1f} ms")
        cells += [_ratio(times[ours].cpu_s, theirs.cpu_s) for ours in _OURS]
        print(f"| {' | '.join(cells)} |", flush=True)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    if ours is theirs:
        return "1"
    # The CPU time of a short run may be less than the clock shows.
    ratios = sorted(
        one / other if other else np.inf for one, other in zip(ours, theirs, strict=True)
    )
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
