"""Gated feed-forward layers: one product opens or shuts the values of the other.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

from embedgrpc.models.graphs.encoders.activations import ACTIVATIONS
from embedgrpc.models.graphs.writer import GraphWriter


def append_gated(writer: GraphWriter, gate: str, values: str, *, activation: str) -> str:
    """Append the gate.

    Args:
        writer: The graph's writer.
        gate: float32 [..., size]: the product that becomes the gate.
        values: float32 [..., size]: the product that passes it.
        activation: The gate's activation function, one of `ACTIVATIONS`.

    Returns:
        The name of the result, float32 [..., size].
    """
    return writer.op("Mul", ACTIVATIONS[activation](writer, gate), values)
