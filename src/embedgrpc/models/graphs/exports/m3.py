"""Finds the token vectors in exports of BGE-M3 that have the three final outputs alone.

Such a graph pools, scales and applies the heads by itself. The token vectors are the last value
that all three outputs depend on. The model's files say what to compute from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.m3_names import DENSE_NAMES, VECTOR_NAMES, WEIGHT_NAMES
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.exports.names import clear_names, values_read
from embedgrpc.models.graphs.outputs import (
    HIDDEN_NAMES,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    TOKEN_WEIGHTS,
)
from embedgrpc.models.graphs.probe import is_close, probe_mask, run_probe
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.kinds import Representation
from embedgrpc.models.sources.weight_file import WeightFile


@dataclass(frozen=True, slots=True)
class M3Outputs:
    """The names of an export's outputs.

    Attributes:
        dense: [batch, dimensions], scaled to length 1.
        weights: [batch, tokens, 1], never below 0; empty if the export lacks it.
        vectors: [batch, tokens - 1, dimensions], of length 1; empty if the export lacks it.
        described: Types and shapes of the outputs, as the export describes them.
    """

    dense: str
    weights: str
    vectors: str
    described: tuple[onnx.ValueInfoProto, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs that the export has."""
        return tuple(name for name in (self.dense, self.weights, self.vectors) if name)


def find_m3_outputs(graph: onnx.GraphProto) -> M3Outputs | None:
    """Return the outputs of an export of BGE-M3; None if the graph is not such an export."""
    given = {value.name: value for value in graph.output}
    dense, weights, vectors = (
        next((name for name in known if name in given), "")
        for known in (DENSE_NAMES, WEIGHT_NAMES, VECTOR_NAMES)
    )
    if not dense or not (weights or vectors):
        return None
    described = []
    for name in filter(None, (dense, weights, vectors)):
        described.append(onnx.ValueInfoProto())
        described[-1].CopyFrom(given[name])
    return M3Outputs(dense, weights, vectors, tuple(described))


def find_m3_hidden(writer: GraphWriter, weight_file: WeightFile, outputs: M3Outputs) -> str:
    """Find the token vectors that the outputs depend on.

    Returns:
        The name of the token vectors, float32 [batch, tokens, hidden_size]. They may be another
        value; `check_m3_outputs` finds out.

    Raises:
        ModelError: The outputs do not depend on a common value.
    """
    named = [value.name for value in writer.graph.output if value.name in HIDDEN_NAMES]
    hidden = named[0] if named else _trace_hidden(writer.graph, outputs)
    if hidden is None:
        raise ModelError(
            f"{weight_file.path}: outputs {', '.join(outputs.names)} are not made from the same "
            f"token vectors: export it with {HIDDEN_NAMES[0]}"
        )
    hidden = clear_names(writer, hidden)
    # The export does not say the type of an inner value; casting float32 to float32 is free.
    return writer.op("Cast", hidden, to=TensorProto.FLOAT)


def adopt_m3_outputs(
    writer: GraphWriter, properties: ModelProperties, outputs: M3Outputs
) -> tuple[str, ...]:
    """Use the export's own token outputs for the heads that no file of the model holds.

    Returns:
        The names of the graph's outputs.
    """
    adopted: tuple[str, ...] = ()
    if Representation.SPARSE in properties.representations and properties.sparse_head is None:
        weights = writer.op("Cast", outputs.weights, to=TensorProto.FLOAT)
        weights = writer.reshape(writer.op("Relu", weights), [0, -1])
        adopted += (writer.output(weights, TOKEN_WEIGHTS),)
    wanted = Representation.MULTI_VECTOR in properties.representations
    if wanted and properties.multi_vector_head is None:
        vectors = writer.op("Cast", outputs.vectors, to=TensorProto.FLOAT)
        vectors = writer.scale_to_unit(_align(writer, vectors))
        adopted += (writer.output(vectors, TOKEN_EMBEDDINGS),)
    return adopted


def _align(writer: GraphWriter, vectors: str) -> str:
    """Put a row of zeros in front of vectors that lack the first token's."""
    pads = writer.constant(np.array([0, 1, 0, 0, 0, 0], dtype=np.int64), "pads")
    padded = writer.op("Pad", vectors, pads, mode="constant")
    one = writer.constant(np.array([1], dtype=np.int64), "one")
    tokens = writer.op("Gather", writer.op("Shape", "input_ids"), one)
    end = writer.constant(np.array([np.iinfo(np.int64).max], dtype=np.int64), "end")
    return writer.op("Slice", padded, writer.op("Neg", tokens), end, one)


def check_m3_outputs(
    graph_path: Path, weight_file: WeightFile, properties: ModelProperties, outputs: M3Outputs
) -> None:
    """Check that the outputs of an export equal ours, which the model's files describe.

    Args:
        graph_path: A graph with our outputs and those of the export.
        weight_file: The ONNX file.
        properties: The model's properties.
        outputs: The outputs of the export.

    Raises:
        ModelError: An output differs.
    """
    real = probe_mask() == 1  # [batch, tokens]
    pairs = [(outputs.dense, SENTENCE_EMBEDDING, "modules.json says")]
    if outputs.weights and properties.sparse_head:
        says = f"{properties.sparse_head.path.name} gives"
        pairs.append((outputs.weights, TOKEN_WEIGHTS, says))
    if outputs.vectors and properties.multi_vector_head:
        says = f"{properties.multi_vector_head.path.name} gives"
        pairs.append((outputs.vectors, TOKEN_EMBEDDINGS, says))
    _check_adopted(graph_path, weight_file, properties)
    names = tuple(name for theirs, ours, _ in pairs for name in (theirs, ours))
    values = run_probe(graph_path, weight_file, properties, names)
    for (name, _, says), theirs, ours in zip(pairs, values[::2], values[1::2], strict=True):
        if name == outputs.dense:
            same = is_close(theirs, ours)
        else:
            same = _are_tokens_close(theirs, ours, real)
        if not same:
            raise ModelError(
                f"{weight_file.path}: output {name!r} is not what {says}: export it again or "
                "correct the model's files"
            )


def _check_adopted(graph_path: Path, weight_file: WeightFile, properties: ModelProperties) -> None:
    """Check that each token has a weight, and a vector of the right length."""
    shapes: dict[str, tuple[int, ...]] = {}
    if Representation.SPARSE in properties.representations:
        shapes[TOKEN_WEIGHTS] = probe_mask().shape
    if Representation.MULTI_VECTOR in properties.representations:
        shapes[TOKEN_EMBEDDINGS] = (*probe_mask().shape, properties.multi_vector_dimensions)
    values = run_probe(graph_path, weight_file, properties, tuple(shapes))
    for (name, shape), value in zip(shapes.items(), values, strict=True):
        if value.shape != shape:
            raise ModelError(
                f"{weight_file.path}: {name} of {len(shape)} axes would be {list(value.shape)}, "
                f"not {list(shape)}: export it again, or add the heads' weights to the folder"
            )


def _are_tokens_close(theirs: NDArray[Any], ours: NDArray[Any], real: NDArray[np.bool_]) -> bool:
    # The export's may have one more axis, of length 1, and may leave out the first token.
    theirs = theirs.reshape(*theirs.shape[:2], -1)
    ours = ours.reshape(*ours.shape[:2], -1)
    skipped = ours.shape[1] - theirs.shape[1]
    if skipped not in {0, 1} or theirs.shape[2] != ours.shape[2]:
        return False
    return is_close(theirs[real[:, skipped:]], ours[:, skipped:][real[:, skipped:]])


def _trace_hidden(graph: onnx.GraphProto, outputs: M3Outputs) -> str | None:
    """Return the last value that all outputs depend on; None if there is none.

    Relies on the order of nodes, which ONNX requires: a node comes before those that use it.
    """
    homes = {name: index for index, node in enumerate(graph.node) for name in node.output}
    shared = _sources(graph, homes, outputs.dense)
    for name in (outputs.weights, outputs.vectors):
        if name:
            shared &= _sources(graph, homes, name)
    shared &= _dependents(graph, "input_ids")
    return max(shared, key=lambda name: homes[name], default=None)


def _sources(graph: onnx.GraphProto, homes: Mapping[str, int], name: str) -> set[str]:
    """Return all outputs of nodes that a value depends on, itself included."""
    found: set[str] = set()
    left = [name]
    while left:
        value = left.pop()
        if value not in homes or value in found:
            continue
        found.add(value)
        left.extend(values_read(graph.node[homes[value]]))
    return found


def _dependents(graph: onnx.GraphProto, name: str) -> set[str]:
    """Return all values that depend on an input, itself included."""
    found = {name}
    for node in graph.node:
        if found.intersection(values_read(node)):
            found.update(node.output)
    return found
