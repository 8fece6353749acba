"""Compare models on Triton through embedgrpc with direct calls of tritonclient.

uv run poe triton && uv run python -m benchmarks.upstream [--rounds N]

The Triton server is that of the tests; its ONNX Runtime backend is written in Python.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks import workloads
from benchmarks.processes import server
from benchmarks.throughput import stream, unary
from embedgrpc.client import AsyncClient
from embedgrpc.models.folder import properties
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.sources import source
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.server.settings.model_settings import DEFAULT_MODEL
from embedgrpc.triton_repository.execution import Execution, Processor
from tests.triton.environment import find
from tests.triton.models import write_repository
from tests.triton.server import TritonServer

_MODEL = "minilm"
_IN_FLIGHT = 32
_WARM_UP_CALLS = 20


@dataclass
class _Contender:
    """One way to embed texts, and its times in seconds."""

    name: str
    run: Callable[[], Awaitable[None]]
    seconds: list[float] = field(default_factory=list)

    async def take_turn(self, *, counts: bool) -> None:
        began = time.perf_counter()
        await self.run()
        if counts:
            self.seconds.append(time.perf_counter() - began)


class _Direct:
    """Direct calls of tritonclient, one text each, tokenized before the measurement."""

    def __init__(self, target: str, sequences: Sequence[TokenSequence]) -> None:
        self._target = target
        self._sequences = sequences

    async def __aenter__(self) -> Self:
        self._client = InferenceServerClient(self._target)
        metadata = await self._client.get_model_metadata(_MODEL)
        self._inputs = tuple(tensor.name for tensor in metadata.inputs)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def embed_first(self) -> None:
        await self._infer(self._sequences[0])

    async def embed_all(self) -> None:
        """Embed all texts in order, with several calls in flight."""
        sequences = iter(self._sequences)

        async def work() -> None:
            for sequence in sequences:
                await self._infer(sequence)

        await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))

    async def _infer(self, sequence: TokenSequence) -> None:
        ids = sequence.input_ids[np.newaxis]
        tensors = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        inputs = []
        for name in self._inputs:
            one = InferInput(name, ids.shape, "INT64")
            one.set_data_from_numpy(tensors[name])
            inputs.append(one)
        wanted = [InferRequestedOutput(SENTENCE_EMBEDDING)]
        answer = await self._client.infer(_MODEL, inputs, outputs=wanted)
        answer.as_numpy(SENTENCE_EMBEDDING)


def main() -> None:
    """Start both servers, measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--calls", type=int, default=300, help="calls of one text")
    parser.add_argument("--texts", type=int, default=0, help="texts of the workload; 0 for all")
    parser.add_argument("--cores", type=int, default=2, help="cores of the model")
    arguments = parser.parse_args()
    execution = Execution(Processor.CPU, cores=arguments.cores, max_batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        write_repository(repository, Path(folder) / "graphs", names=(_MODEL,), execution=execution)
        with (
            TritonServer(find(), repository) as triton,
            server(source=f"triton:{triton.address}/{_MODEL}") as served,
        ):
            asyncio.run(_measure(triton.address, served.target, arguments))


async def _measure(triton: str, target: str, arguments: argparse.Namespace) -> None:
    mixed = workloads.mixed()
    mixed = replace(mixed, texts=mixed.texts[: arguments.texts or None])
    passage = workloads.passages().texts[0]
    async with AsyncClient(target, timeout_s=600) as client:

        async def embed_passage() -> None:
            await client.embed([passage])

        async with _Direct(triton, _tokenize([passage])) as direct:
            lone = [
                _Contender("tritonclient", direct.embed_first),
                _Contender("embedgrpc", embed_passage),
            ]
            for number in range(_WARM_UP_CALLS + arguments.calls):
                for contender in lone:
                    await contender.take_turn(counts=number >= _WARM_UP_CALLS)
        _print_latencies(lone)
        sequences = _tokenize(mixed.texts)
        async with _Direct(triton, sequences) as direct:
            bulk = [
                _Contender(f"tritonclient, 1 text, {_IN_FLIGHT} in flight", direct.embed_all),
                _Contender("embedgrpc, stream", lambda: stream(client, mixed)),
                _Contender(
                    f"embedgrpc, 1 text, {_IN_FLIGHT} in flight", lambda: unary(client, mixed)
                ),
            ]
            for number in range(1 + arguments.rounds):
                for contender in bulk if number % 2 else reversed(bulk):
                    await contender.take_turn(counts=number > 0)
        _print_throughputs(bulk, sum(len(one.input_ids) for one in sequences))


def _tokenize(texts: Sequence[str]) -> list[TokenSequence]:
    files = source.resolve(DEFAULT_MODEL.source)
    described = properties.read(files)
    tokenizer = Tokenizer.load(described)
    return [
        tokenizer.build_sequence(ids, max_tokens=described.max_tokens, truncation=Truncation.END)
        for ids in tokenizer.encode(texts)
    ]


def _print_latencies(contenders: Sequence[_Contender]) -> None:
    print("| one passage at a time | p50 | p99 | p50 above the first |\n|---|---|---|---|")
    least_ms = statistics.median(contenders[0].seconds) * 1e3
    for one in contenders:
        p50_ms = statistics.median(one.seconds) * 1e3
        p99_ms = sorted(one.seconds)[int(len(one.seconds) * 0.99)] * 1e3
        print(f"| {one.name} | {p50_ms:.2f} ms | {p99_ms:.2f} ms | {p50_ms - least_ms:.2f} ms |")


def _print_throughputs(contenders: Sequence[_Contender], tokens: int) -> None:
    print("\n| mixed lengths | tokens/s | ratio to the first |\n|---|---|---|")
    first = contenders[0]
    for one in contenders:
        ratios = sorted(a / b for a, b in zip(first.seconds, one.seconds, strict=True))
        print(
            f"| {one.name} | {tokens / statistics.median(one.seconds):,.0f}"
            f" | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
