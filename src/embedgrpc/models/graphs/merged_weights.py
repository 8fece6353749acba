"""Opens the weights of a model with its adapter merged in."""

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.sources.weight_file import WeightFile, open_tensors
from embedgrpc.models.tensors.lora import MergedTensors
from embedgrpc.models.tensors.shards import open_tensor_file
from embedgrpc.models.tensors.weights import Tensors


def open_merged(weight_file: WeightFile, properties: ModelProperties) -> Tensors:
    """Open the weights of a file that is not an ONNX graph, with the adapter if there is one.

    Raises:
        ModelError: They cannot be read, or the adapter does not fit.
    """
    tensors, adapter = open_tensors(weight_file), properties.adapter
    if adapter is None:
        return tensors
    try:
        changes = open_tensor_file(adapter.weights)
    except ModelError:
        tensors.__exit__(None, None, None)
        raise
    return MergedTensors(tensors, changes, adapter.scaling, saved=adapter.saved)
