"""Appends the modules that follow pooling: Dense and LayerNorm."""

from collections.abc import Callable

from embedgrpc.models.graphs.encoders.activations import gelu, silu
from embedgrpc.models.graphs.writer import EXACT_PREFIX, GraphWriter
from embedgrpc.models.tensors.layer_weights import open_layer
from embedgrpc.models.tensors.vector_layers import DenseLayer, NormLayer, VectorLayer
from embedgrpc.models.tensors.weights import Tensors

# The default of torch.nn.LayerNorm; the module's configuration has no key for it.
_EPSILON = 1e-5


def append_layer(writer: GraphWriter, layer: VectorLayer, source: str) -> str:
    """Append a module that follows pooling.

    Args:
        writer: The graph's writer.
        layer: The module.
        source: float32 [..., in_features].

    Returns:
        The name of the result, float32 [..., out_features].

    Raises:
        ModelError: Its weights are missing or do not fit its configuration.
    """
    with open_layer(layer) as tensors:
        tensors.check(layer.shapes)
        if isinstance(layer, NormLayer):
            scale = _weight(writer, tensors, layer, "norm.weight")
            shift = _weight(writer, tensors, layer, "norm.bias")
            return writer.layer_norm(source, scale, shift, epsilon=_EPSILON)
        return _append_dense(writer, tensors, layer, source)


def _append_dense(writer: GraphWriter, tensors: Tensors, layer: DenseLayer, source: str) -> str:
    weight = _weight(writer, tensors, layer, "linear.weight")
    product = writer.op("MatMul", source, weight, name=f"{EXACT_PREFIX}dense")
    if layer.bias:
        product = writer.op("Add", product, _weight(writer, tensors, layer, "linear.bias"))
    result = _ACTIVATIONS[layer.activation](writer, product)
    if not layer.residual:
        return result
    if layer.in_features != layer.out_features:
        weight = _weight(writer, tensors, layer, "residual.weight")
        source = writer.op("MatMul", source, weight, name=f"{EXACT_PREFIX}residual")
    return writer.op("Add", result, source)


def _weight(writer: GraphWriter, tensors: Tensors, layer: VectorLayer, name: str) -> str:
    values = tensors.read(name)
    # torch stores a matrix as [out_features, in_features].
    return writer.weight(values.T, f"{layer.folder.name}.{name}")


def _single(kind: str) -> Callable[[GraphWriter, str], str]:
    return lambda writer, source: writer.op(kind, source)


def _mish(writer: GraphWriter, source: str) -> str:
    return writer.op("Mul", source, writer.op("Tanh", writer.op("Softplus", source)))


def _relu6(writer: GraphWriter, source: str) -> str:
    return writer.op("Clip", source, writer.scalar(0.0), writer.scalar(6.0))


# With torch's default parameters, which the reference implementation uses.
_ACTIVATIONS: dict[str, Callable[[GraphWriter, str], str]] = {
    "Identity": lambda _writer, source: source,
    "Tanh": _single("Tanh"),
    "ReLU": _single("Relu"),
    "GELU": gelu,
    "Sigmoid": _single("Sigmoid"),
    "SiLU": silu,
    "LeakyReLU": lambda writer, source: writer.op("LeakyRelu", source, alpha=0.01),
    "ELU": lambda writer, source: writer.op("Elu", source, alpha=1.0),
    "SELU": _single("Selu"),
    "Softplus": _single("Softplus"),
    "Softsign": _single("Softsign"),
    "Mish": _mish,
    "ReLU6": _relu6,
}
