"""The activation functions of feed-forward layers, as ONNX nodes."""

import math
from collections.abc import Callable

from embedgrpc.models.graphs.writer import GraphWriter


def gelu(writer: GraphWriter, source: str) -> str:
    """Append the exact Gaussian error linear unit."""
    # ONNX Runtime fuses these nodes if they come in this order.
    error = writer.op("Erf", writer.op("Div", source, writer.scalar(math.sqrt(2.0))))
    product = writer.op("Mul", source, writer.op("Add", error, writer.scalar(1.0)))
    return writer.op("Mul", product, writer.scalar(0.5))


def _gelu_new(writer: GraphWriter, source: str) -> str:
    # The approximation by a hyperbolic tangent. In standard operators it takes 2.7 times as long,
    # and ONNX Runtime does not fuse them.
    return writer.microsoft("FastGelu", source)


def silu(writer: GraphWriter, source: str) -> str:
    """Append the sigmoid linear unit."""
    return writer.op("Mul", source, writer.op("Sigmoid", source))


def _quick_gelu(writer: GraphWriter, source: str) -> str:
    # The approximation by a logistic function.
    gate = writer.op("Sigmoid", writer.op("Mul", source, writer.scalar(1.702)))
    return writer.op("Mul", source, gate)


# By the value of `hidden_act` in config.json.
ACTIVATIONS: dict[str, Callable[[GraphWriter, str], str]] = {
    "gelu": gelu,
    "gelu_new": _gelu_new,
    "gelu_python": gelu,
    "gelu_fast": _gelu_new,
    "gelu_pytorch_tanh": _gelu_new,
    "quick_gelu": _quick_gelu,
    "relu": lambda writer, source: writer.op("Relu", source),
    "silu": silu,
    "swish": silu,
    "tanh": lambda writer, source: writer.op("Tanh", source),
}
