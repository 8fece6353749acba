"""Normalises vectors by their root mean square.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from embedgrpc.models.graphs.writer import GraphWriter


def append_rms_norm(writer: GraphWriter, source: str, scale: str, *, epsilon: float) -> str:
    """Append a normalisation over the last axis.

    Args:
        writer: The graph's writer.
        source: float32 [..., size].
        scale: float32 [size].
        epsilon: Added to the mean square.

    Returns:
        The name of the result, float32 [..., size].
    """
    # ONNX Runtime fuses these nodes to one if they come in this order.
    squares = writer.op("Pow", source, writer.scalar(2.0))
    mean = writer.op("Add", writer.reduce("ReduceMean", squares, -1), writer.scalar(epsilon))
    return writer.op("Mul", writer.op("Div", source, writer.op("Sqrt", mean)), scale)
