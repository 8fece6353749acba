"""Run a bare ONNX Runtime session on the default model's graph, to compare a server with.

The only argument is the type of the weights. Reads lines of JSON on stdin, answers on stdout:
- {"do": "prepare", "name": NAME, "texts": [...]}: tokenize, outside any measurement;
- {"do": "best", "name": NAME}: return the budget of padded tokens with the highest throughput;
- {"do": "run", "name": NAME, "order": "sorted" | "given", "budget": N, "sequences": N}: run all
  texts once, in batches of at most `budget` padded tokens and `sequences` texts; 0 for no limit;
- {"do": "one", "name": NAME}: run the first text alone.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.engine.scheduling.padding import pad
from embedgrpc.models.folder import properties
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.graphs import graph
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING
from embedgrpc.models.kinds import Truncation, WeightType
from embedgrpc.models.sources import source
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.server.settings.model_settings import DEFAULT_MODEL

_BUDGETS = (256, 512, 1024, 2048, 4096)
_CACHE = Path("~/.cache/embedgrpc").expanduser()


class _Loop:
    def __init__(self, weight_type: str) -> None:
        files = source.resolve(DEFAULT_MODEL.source)
        overrides = ModelOverrides(weight_type=WeightType(weight_type))
        self._metadata = properties.read(files, overrides)
        self._tokenizer = Tokenizer.load(self._metadata)
        prepared = graph.prepare(files, self._metadata, cache_dir=_CACHE)
        self._backend = OnnxBackend(prepared.path, device="cpu", lanes=1)
        self._sequences: dict[str, list[TokenSequence]] = {}
        self._batches: dict[tuple[str, str, int, int], list[PaddedBatch]] = {}

    def prepare(self, *, name: str, texts: list[str]) -> dict[str, Any]:
        limit = self._metadata.max_tokens
        self._sequences[name] = [
            self._tokenizer.build_sequence(ids, max_tokens=limit, truncation=Truncation.END)
            for ids in self._tokenizer.encode(texts)
        ]
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
            pad_token_id=self._metadata.pad_token_id,
            left=False,
            outputs=(SENTENCE_EMBEDDING,),
        )


def main() -> None:
    """Answer requests until stdin ends."""
    loop = _Loop(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(loop, request.pop("do"))(**request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
