"""Compare the served speed of each kind of model with a bare ONNX Runtime loop, in turns.

uv run python -m benchmarks.kinds [--rounds N] [--texts N] [FOLDER...]

Without folders, the reference's environment makes models of the size of the default one, with
random weights. The name of a folder begins with what is measured: embed, sparse, late, rerank or
classify.
"""

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.processes import RawLoop, cpu_s, server
from embedgrpc.client import AsyncClient
from embedgrpc.models.sources import source
from embedgrpc.server.settings.model_settings import DEFAULT_MODEL
from tests.reference.environment import find_python

_ROOT = Path(__file__).parent.parent
_BATCH = 64
_CALLS_IN_FLIGHT = 4
_WARM_UP_ROUNDS = 1
# The classes of models that make nothing but a look-up get as many texts as take a second.
_LOOK_UPS = 40
_TABLES = ("model2vec", "look-up")


@dataclass(frozen=True, slots=True)
class Measured:
    """One way to run the texts of a round.

    Attributes:
        seconds: The median time.
        cpu_s: The median CPU time.
    """

    seconds: float
    cpu_s: float


async def embed(client: AsyncClient, texts: list[str], **options: Any) -> None:
    """Embed texts with one stream."""
    stream = client.embed_stream(texts, batch_size=_BATCH, order="completion", **options)
    failed = [one.error async for one in stream if one.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} texts failed: {failed[0]}")


async def rerank(client: AsyncClient, texts: list[str]) -> None:
    """Rank texts by the first of them, in calls of a batch each."""
    query, documents = texts[0], texts
    await _call_in_turns(documents, lambda batch: client.rerank(query, batch))


async def classify(client: AsyncClient, texts: list[str]) -> None:
    """Classify texts, in calls of a batch each."""
    await _call_in_turns(texts, client.classify)


async def _call_in_turns(texts: list[str], call: Callable[[list[str]], Awaitable[Any]]) -> None:
    batches = iter([texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)])

    async def work() -> None:
        for batch in batches:
            await call(batch)

    await asyncio.gather(*(work() for _ in range(_CALLS_IN_FLIGHT)))


Work = Callable[[AsyncClient, list[str]], Awaitable[None]]
_WORK: dict[str, Work] = {
    "embed": embed,
    "sparse": partial(embed, representations=["sparse"]),
    "late": partial(embed, representations=["multi_vector"], input_type="document"),
    "rerank": rerank,
    "classify": classify,
}


def measure(folder: Path, texts: list[str], rounds: int) -> tuple[Measured, Measured, int]:
    """Run the texts through the raw loop and the server, in turns.

    Returns:
        The figures of the raw loop and of the server, and the tokens of a round.
    """
    what = folder.name.partition("-")[0]
    work = _WORK[what]
    items: list[Any] = [[texts[0], text] for text in texts] if what == "rerank" else texts
    with RawLoop(source=str(folder)) as raw, server(source=str(folder)) as served:
        tokens = raw.ask(do="prepare", name=what, texts=items)["tokens"]
        budget = raw.ask(do="best", name=what)["budget"]
        times: tuple[list[float], list[float]] = ([], [])
        cpu_times: tuple[list[float], list[float]] = ([], [])

        async def once() -> float:
            async with AsyncClient(served.target, timeout_s=600) as client:
                await client.list_models()
                began = time.perf_counter()
                await work(client, texts)
                return time.perf_counter() - began

        for number in range(_WARM_UP_ROUNDS + rounds):
            answer = raw.ask(do="run", name=what, order="sorted", budget=budget)
            before = cpu_s(served.pid)
            seconds = asyncio.run(once())
            cpu = cpu_s(served.pid) - before
            if number >= _WARM_UP_ROUNDS:
                for place, pair in enumerate(
                    ((answer["seconds"], answer["cpu_s"]), (seconds, cpu))
                ):
                    times[place].append(pair[0])
                    cpu_times[place].append(pair[1])
    found = [
        Measured(statistics.median(one), statistics.median(other))
        for one, other in zip(times, cpu_times, strict=True)
    ]
    return found[0], found[1], tokens


def main() -> None:
    """Print a table with a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of models")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--texts", type=int, default=0, help="texts of a round; 0 for all")
    arguments = parser.parse_args()
    passages = list(workloads.passages().texts)[: arguments.texts or None]
    with ExitStack() as resources:
        folders: list[Path] = arguments.folders
        if not folders:
            place = Path(resources.enter_context(tempfile.TemporaryDirectory()))
            default = source.resolve(DEFAULT_MODEL.source).folder
            command = (find_python(), "-m", "benchmarks.make_kinds", default, place)
            subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)
            folders = sorted(path for path in place.iterdir() if path.is_dir())
        print("| model | raw texts/s | served texts/s | served / raw | CPU ratio | tokens/s |")
        print("|---|---|---|---|---|---|")
        for folder in folders:
            look_up = folder.name.endswith(_TABLES)
            texts = passages * _LOOK_UPS if look_up else passages
            if look_up:
                # The server runs equal texts in flight once.
                texts = [f"{number} {text}" for number, text in enumerate(texts)]
            raw, served, tokens = measure(folder, texts, arguments.rounds)
            print(
                f"| {folder.name} | {len(texts) / raw.seconds:,.0f} "
                f"| {len(texts) / served.seconds:,.0f} | {raw.seconds / served.seconds:.3f} "
                f"| {raw.cpu_s / max(served.cpu_s, 1e-9):.3f} | {tokens / served.seconds:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
