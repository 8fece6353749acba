"""Builds what inference-free SPLADE has in place of an encoder: a look-up of token weights."""

import numpy as np

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.weight_table import WeightTable
from embedgrpc.models.graphs.outputs import TOKEN_WEIGHTS
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.tensors.weights import Tensors


def append_look_up(writer: GraphWriter, tensors: Tensors, table: WeightTable) -> str:
    """Look up the weight of each token.

    Args:
        writer: The graph's writer.
        tensors: The file of the table.
        table: The table.

    Returns:
        The name of the graph's output, float32 [batch, tokens].

    Raises:
        ModelError: A weight is not finite.
    """
    weights = tensors.read(table.name).astype(np.float32, copy=False)
    if not np.isfinite(weights).all():
        raise ModelError(f"{tensors.path}: {table.name} holds numbers that are not finite")
    found = writer.op("Gather", writer.weight(weights, "weight_table"), "input_ids")
    return writer.output(found, TOKEN_WEIGHTS)
