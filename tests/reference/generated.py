"""Compares drawn models with the reference: `python -m tests.reference.generated --folders 500`.

The reference libraries run in an environment of their own: see `environment.py`. They save each
model and answer for it; embedgrpc then loads the folder as `serve` does. A model that embedgrpc
refuses counts as such, with the reason: nothing is wrong in silence.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedgrpc.cli.runners import Item, LocalRunner
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.graphs.outputs import (
    LOGITS,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.kinds import Kind
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.server.loading import loading
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings
from tests.reference.drawing import draw, dump
from tests.reference.environment import EnvironmentMissingError, find_python

FIXTURES = Path(__file__).parent.parent / "fixtures"
_ROOT = FIXTURES.parent.parent
# As for the fixtures, for numbers up to 1; larger ones have larger errors.
_TOLERANCE = 1e-5
_BATCH_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a model compares with the reference.

    Attributes:
        seed: The seed of its settings.
        outcome: "equal", "DIFFERENT", "refused", "only the reference fails" or "both fail".
        found: What differs, or why it was refused.
    """

    seed: int
    outcome: str
    found: str = ""


def make(seeds: Sequence[int], out: Path, python: Path) -> Iterator[Path]:
    """Let the reference make models; yield their folders.

    Args:
        seeds: One for each model.
        out: An empty folder.
        python: The interpreter of the reference.
    """
    lines = "".join(dump(draw(seed)) + "\n" for seed in seeds)
    log = out / "maker.log"
    with log.open("w") as errors:
        done = subprocess.run(
            [python, "-m", "tests.reference.maker", FIXTURES, out.absolute()],
            cwd=_ROOT,
            input=lines,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the maker failed: {log.read_text()[-1000:]}")
    for seed in seeds:
        yield out / str(seed)


def compare(folder: Path, cache_dir: Path) -> Verdict:
    """Load a folder that the reference made, and compare its results."""
    expected: dict[str, Any] = json.loads((folder / "expected.json").read_text("utf-8"))
    seed = int(folder.name)
    with ExitStack() as resources:
        try:
            runner = _load(folder, cache_dir, resources)
        except loading.LOAD_ERRORS as error:
            outcome = "both fail" if "error" in expected else "refused"
            return Verdict(seed, outcome, str(error).replace(str(folder), "FOLDER"))
        if "error" in expected:
            return Verdict(seed, "only the reference fails", expected["error"])
        differences = list(_find_differences(runner, expected))
    if differences:
        return Verdict(seed, "DIFFERENT", differences[0])
    return Verdict(seed, "equal")


def _load(folder: Path, cache_dir: Path, resources: ExitStack) -> LocalRunner:
    model = ModelSettings(source=str(folder))
    settings = Settings(cache_dir=cache_dir, device="cpu", intra_op_threads=1)
    prepared = loading.prepare_model(ServedModel(model), settings, loading.open_onnx)
    resources.callback(prepared.backend.close)
    tokens = prepared.properties.max_tokens
    characters = settings.max_characters_per_token * tokens
    return LocalRunner(str(folder), prepared, tokens, characters)


def _find_differences(runner: LocalRunner, expected: dict[str, Any]) -> Iterator[str]:
    properties = runner.model.properties
    if properties.kind is Kind.CROSS_ENCODER:
        pairs: list[Item] = [(query, document) for query, document in expected["pairs"]]
        logits = np.concatenate(runner.run(pairs)[LOGITS])
        yield from _differ("logit", logits, expected["logits"])
        scores = logits
        if properties.activation == "sigmoid":
            scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
        yield from _differ("score", scores, expected["scores"])
        yield from _differ_in_batch(runner, pairs, LOGITS)
        return
    texts: list[Item] = list(expected["texts"])
    if properties.late_interaction is not None:
        yield from _find_late_differences(runner, texts, expected)
        return
    if "ids" in expected:
        yield from _differ_in_tokens(runner.tokenize(texts), expected["ids"])
    output = VOCABULARY_WEIGHTS if properties.splade else SENTENCE_EMBEDDING
    vectors = np.stack(runner.run(texts)[output])
    tolerance = expected.get("tolerance", _TOLERANCE)
    yield from _differ("vector", vectors, expected["vectors"], tolerance)
    for name, wanted in expected.get("prompts", {}).items():
        prompted = replace(properties, default_prompt_name=name)
        other = replace(runner, model=replace(runner.model, properties=prompted))
        found = np.stack(other.run(texts[: len(wanted)])[output])
        yield from _differ(f"vector with prompt {name}", found, wanted, tolerance)
    if expected.get("similarity", properties.similarity) != properties.similarity:
        yield f"similarity {properties.similarity}, not {expected['similarity']}"
    yield from _differ_in_batch(runner, texts, output)


def _find_late_differences(
    runner: LocalRunner, texts: list[Item], expected: dict[str, Any]
) -> Iterator[str]:
    """Compare documents and queries: their tokens, and one vector per token."""
    roles = ("document", "query")
    sequences = runner.tokenize(texts)
    yield from _differ_in_tokens(
        sequences, [ids for role in roles for ids in expected[role]["ids"]]
    )
    alone = runner.run(texts)[TOKEN_EMBEDDINGS]
    wanted = [rows for role in roles for rows in expected[role]["vectors"]]
    batched = runner.run_batches(sequences, [range(len(sequences))])[TOKEN_EMBEDDINGS]
    for place, (ours, theirs) in enumerate(zip(alone, wanted, strict=True)):
        size = ours.shape[1]
        rows = np.asarray(theirs, np.float32).reshape(-1, size)
        yield from _differ(f"vectors of text {place}", ours, rows)
        limit = _BATCH_TOLERANCE
        yield from _differ(f"in a batch, vectors of text {place}", batched[place], ours, limit)


def _differ_in_tokens(sequences: Sequence[TokenSequence], wanted: list[list[int]]) -> Iterator[str]:
    for place, (sequence, ids) in enumerate(zip(sequences, wanted, strict=True)):
        if sequence.input_ids.tolist() != ids:
            yield f"tokens of text {place}: {sequence.input_ids.tolist()}, not {ids}"


def _differ(what: str, ours: FloatArray, wanted: Any, limit: float = _TOLERANCE) -> Iterator[str]:
    theirs = np.asarray(wanted, np.float32)
    if ours.shape != theirs.shape:
        yield f"{what}: shape {ours.shape}, not {theirs.shape}"
        return
    if not theirs.size:
        return
    size = max(1.0, float(np.abs(theirs).max()))
    difference = np.abs(ours - theirs).reshape(len(ours), -1).max(axis=1)
    worst = int(difference.argmax())
    if not difference[worst] <= limit * size:
        yield f"{what} {worst}: differs by {difference[worst]:.2g}"


def _differ_in_batch(runner: LocalRunner, items: Sequence[Item], output: str) -> Iterator[str]:
    """Compare results alone with those of one batch of all items."""
    alone = np.stack(runner.run(items)[output])
    sequences = runner.tokenize(items)
    batched = np.stack(runner.run_batches(sequences, [range(len(sequences))])[output])
    yield from _differ("in a batch", batched, alone, _BATCH_TOLERANCE)


def run(seeds: Sequence[int], out: Path, python: Path) -> Iterator[Verdict]:
    """Make models, and compare them one by one."""
    for folder in make(seeds, out, python):
        yield compare(folder, out / "graphs")


def main() -> int:
    """Print each difference and a summary; return 1 if there is a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=500, help="how many models")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, help="a folder to keep the models in")
    parsed = parser.parse_args()
    try:
        python = find_python()
    except EnvironmentMissingError as error:
        sys.exit(str(error))
    with ExitStack() as resources:
        out = parsed.out or Path(resources.enter_context(tempfile.TemporaryDirectory()))
        out.mkdir(parents=True, exist_ok=True)
        counts: Counter[str] = Counter()
        for verdict in run(range(parsed.first, parsed.first + parsed.folders), out, python):
            counts[verdict.outcome] += 1
            if verdict.outcome not in ("equal", "both fail"):
                line = f"{verdict.seed} {verdict.outcome}: {verdict.found[:300]}"
                print(line, flush=True)  # noqa: T201 - its answer
    for outcome, count in counts.most_common():
        print(f"{count:>6} {outcome}")  # noqa: T201 - its answer
    return bool(counts["DIFFERENT"])


if __name__ == "__main__":
    sys.exit(main())
