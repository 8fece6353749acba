"""Run a bare ONNX Runtime session on a model's graph, to compare a server with.

The arguments are the type of the weights, the source of the model, and how long the session's
threads spin after a run, in microseconds; none for the default of the server. Reads lines of JSON
on stdin, answers on stdout:
- {"do": "prepare", "name": NAME, "texts": [...]}: tokenize texts or pairs, outside any measurement;
- {"do": "best", "name": NAME}: return the budget of padded tokens with the highest throughput;
- {"do": "run", "name": NAME, "order": "sorted" | "given", "budget": N, "sequences": N}: run all
  texts once, in batches of at most `budget` padded tokens and `sequences` texts; 0 for no limit;
- {"do": "one", "name": NAME}: run the first text alone.
"""

import json
import sys
import time
from typing import Any

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.cli.runners import LocalRunner
from embedgrpc.engine.scheduling.padding import pad
from embedgrpc.models.graphs.outputs import LOGITS, SENTENCE_EMBEDDING
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.server.loading import loading
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.settings.settings import Settings

_BUDGETS = (256, 512, 1024, 2048, 4096)
# What a server computes by default is one of these, or else all outputs.
_MAIN_OUTPUTS = (SENTENCE_EMBEDDING, LOGITS)


class _Loop:
    def __init__(self, weight_type: str, source: str, spin_duration_us: str = "") -> None:
        model = ModelSettings(source=source, weight_type=WeightType(weight_type))
        settings = Settings(device="cpu", lanes=1)
        if spin_duration_us:
            settings = settings.model_copy(update={"spin_duration_us": int(spin_duration_us)})
        prepared = loading.prepare_model(ServedModel(model), settings, loading.open_onnx)
        tokens = prepared.properties.max_tokens
        self._runner = LocalRunner(
            source, prepared, tokens, settings.max_characters_per_token * tokens
        )
        outputs = self._runner.outputs
        self._outputs = tuple(one for one in outputs if one in _MAIN_OUTPUTS)[:1] or outputs
        self._backend = prepared.backend
        self._sequences: dict[str, list[TokenSequence]] = {}
        self._batches: dict[tuple[str, str, int, int], list[PaddedBatch]] = {}

    def prepare(self, *, name: str, texts: list[Any]) -> dict[str, Any]:
        items = [text if isinstance(text, str) else tuple(text) for text in texts]
        # Of a model of late interaction, the texts are also tokenized as queries, after these.
        self._sequences[name] = self._runner.tokenize(items)[: len(items)]
        return {"tokens": sum(len(one.input_ids) for one in self._sequences[name])}

    def best(self, *, name: str) -> dict[str, Any]:
        seconds = {
            budget: min(
                self.run(name=name, order="sorted", budget=budget)["seconds"] for _ in range(3)
            )
            for budget in _BUDGETS
        }
        return {"budget": min(seconds, key=lambda budget: seconds[budget])}

    def run(self, *, name: str, order: str, budget: int = 0, sequences: int = 0) -> dict[str, Any]:
        key = (name, order, budget, sequences)
        if key not in self._batches:
            self._batches[key] = self._form(*key)
        batches = self._batches[key]
        cpu = time.process_time()
        began = time.perf_counter()
        for batch in batches:
            self._backend.run(batch)
        return {
            "seconds": time.perf_counter() - began,
            "cpu_s": time.process_time() - cpu,
            "padded_tokens": sum(batch.input_ids.size for batch in batches),
        }

    def one(self, *, name: str) -> dict[str, Any]:
        batch = self._pad(self._sequences[name][:1])
        began = time.perf_counter()
        self._backend.run(batch)
        return {"seconds": time.perf_counter() - began}

    def _form(self, name: str, order: str, budget: int, limit: int) -> list[PaddedBatch]:
        """Form batches in the given order, or sorted by length, the longest last."""
        sequences = list(self._sequences[name])
        if order == "sorted":
            sequences.sort(key=lambda one: len(one.input_ids))
        batches: list[list[TokenSequence]] = [[]]
        for one in sequences:
            size = len(batches[-1]) + 1
            longest = max(len(other.input_ids) for other in [*batches[-1], one])
            full = (budget and longest * size > budget) or (limit and size > limit)
            if batches[-1] and full:
                batches.append([])
            batches[-1].append(one)
        return [self._pad(batch) for batch in batches]

    def _pad(self, sequences: list[TokenSequence]) -> PaddedBatch:
        return pad(
            sequences,
            pad_token_id=self._runner.model.properties.pad_token_id,
            left=False,
            outputs=self._outputs,
        )


def main() -> None:
    """Answer requests until stdin ends."""
    loop = _Loop(*sys.argv[1:])
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(loop, request.pop("do"))(**request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
