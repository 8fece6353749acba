"""Builds what inference-free SPLADE has in place of an encoder: a look-up of token weights."""

import numpy as np

from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.weight_table import WeightTable
from embedgrpc.models.graphs.outputs import TOKEN_WEIGHTS
from embedgrpc.models.graphs.writer import GraphWriter
from embedgrpc.models.sources.weight_file import WeightFile, open_tensors
from embedgrpc.models.tokenizers.tokenizer import Tokenizer


def append_look_up(writer: GraphWriter, weights: FloatArray) -> str:
    """Look up the weight of each token.

    Args:
        writer: The graph's writer.
        weights: float32 [token ids].

    Returns:
        The name of the graph's output, float32 [batch, tokens].
    """
    found = writer.op("Gather", writer.weight(weights, "weight_table"), "input_ids")
    return writer.output(found, TOKEN_WEIGHTS)


def read_table_weights(
    weight_file: WeightFile, properties: ModelProperties, table: WeightTable
) -> FloatArray:
    """Read the weights of all token ids.

    Returns:
        float32 [token ids].

    Raises:
        ModelError: The file or the tokenizer cannot be read, or a weight is not a finite number.
    """
    if table.is_listed:
        return _read_listed(weight_file, properties, table)
    with open_tensors(weight_file) as tensors:
        weights = tensors.read(table.name).astype(np.float32, copy=False)
    if not np.isfinite(weights).all():
        raise ModelError(f"{weight_file.path}: {table.name} holds numbers that are not finite")
    return weights


def _read_listed(
    weight_file: WeightFile, properties: ModelProperties, table: WeightTable
) -> FloatArray:
    """Read the weights of the tokens that a JSON file names; the others weigh nothing.

    Source: `SparseStaticEmbedding.from_json` of sentence-transformers.
    """
    listed = JsonObject.read(weight_file.path, weight_file.root)
    if not listed.values:
        raise ModelError(f"{listed.path} must hold the weight of each token")
    ids = Tokenizer.load(properties).find_ids(listed.values)
    weights = np.zeros(table.entries, np.float32)
    for place, (token_id, value) in enumerate(zip(ids, listed.values.values(), strict=True)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelError(f"{listed.path}: entry {place} must be a number")
        if token_id is None:
            raise ModelError(
                f"{listed.path}: entry {place} is not a token of the tokenizer, which has no "
                "unknown token in its place"
            )
        try:
            weights[token_id] = value
        except OverflowError:
            weights[token_id] = np.inf
    if not np.isfinite(weights).all():
        raise ModelError(f"{listed.path} holds numbers that are not finite")
    return weights
