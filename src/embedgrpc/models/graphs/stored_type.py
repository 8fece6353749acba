"""Finds the type in which a model's weights are stored."""

from collections import Counter
from math import prod

from embedgrpc.models.sources.weight_file import Format, WeightFile, open_tensors

_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}


def find_stored_type(weight_file: WeightFile) -> str:
    """Return the type of most of the weights of a file, such as "float16".

    Weights that an ONNX graph keeps in other files count; numbers in JSON count as float32.

    Raises:
        ModelError: The file cannot be read.
    """
    if weight_file.format is Format.ONNX:
        from embedgrpc.models.graphs.exports.onnx_file import find_weight_type, load_proto  # noqa: PLC0415 - slow

        return find_weight_type(load_proto(weight_file))
    if weight_file.format is Format.LISTED:
        return "float32"
    counts: Counter[str] = Counter()
    with open_tensors(weight_file) as tensors:
        for name in tensors.names:
            shape, kind = tensors.describe(name)
            counts[_NAMES.get(kind, kind.lower())] += prod(shape)
    return max(counts, key=counts.__getitem__, default="none")
