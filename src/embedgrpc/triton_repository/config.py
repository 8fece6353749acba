"""Makes config.pbtxt, a model's configuration for a Triton server."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.graph import Graph
from embedgrpc.models.graphs.output_sizes import output_sizes
from embedgrpc.models.sources.triton_parameters import FINGERPRINT_PARAMETER, SOURCE_PARAMETER
from embedgrpc.triton_repository.execution import BatchShape, Execution

# An axis of any length.
_FREE = -1
_WARM_UP = (BatchShape(1, 16), BatchShape(8, 128))
_MASK = "attention_mask"
_HEADER = (
    "# Written by `embedgrpc triton-repo`, which replaces it for as long as it is unchanged.\n"
)


@dataclass(frozen=True, slots=True)
class RepositoryModel:
    """A model to write to a repository.

    Attributes:
        name: Its name there.
        source: The source of its tokenizer and properties, for those who serve it.
        properties: Its properties.
        graph: Its graph.
    """

    name: str
    source: str
    properties: ModelProperties
    graph: Graph


def make_config(model: RepositoryModel, execution: Execution) -> model_config_pb2.ModelConfig:
    """Return the complete configuration of a model, so that Triton guesses nothing.

    It has no queue policy (bound, priority, timeout), with which requests may wait for half a
    second while an instance is idle, and no response cache, which would also cache errors.
    """
    config = model_config_pb2.ModelConfig(name=model.name, backend="onnxruntime")
    for name in model.graph.inputs:
        config.input.add(name=name, data_type=model_config_pb2.TYPE_INT64, dims=[_FREE])
    sizes = output_sizes(model.properties)
    for name in model.graph.outputs:
        dims = [_FREE if size is None else size for size in sizes[name]]
        config.output.add(name=name, data_type=model_config_pb2.TYPE_FP32, dims=dims)
    config.version_policy.latest.num_versions = 1
    execution.write(config, inputs=model.graph.inputs, max_tokens=model.properties.max_tokens)
    fingerprint = execution.fingerprint(model.graph.content_hash)
    config.parameters[SOURCE_PARAMETER].string_value = model.source
    config.parameters[FINGERPRINT_PARAMETER].string_value = fingerprint
    for shape in _warm_up_shapes(model, execution):
        config.model_warmup.append(_warm_up(shape, model.graph.inputs))
    return config


def print_config(config: model_config_pb2.ModelConfig) -> str:
    """Return a configuration in the text format of config.pbtxt."""
    return _HEADER + str(text_format.MessageToString(config))


def warm_up_files(model: RepositoryModel, execution: Execution) -> Mapping[str, bytes]:
    """Return the content of the files in the folder `warmup`, by name."""
    return {
        # One sequence, little-endian int64.
        _ones_name(shape): np.ones(shape.tokens, dtype="<i8").tobytes()
        for shape in _warm_up_shapes(model, execution)
    }


def _warm_up_shapes(model: RepositoryModel, execution: Execution) -> Iterator[BatchShape]:
    """Yield the shapes to warm up with: one short text, and a batch."""
    smallest, tuned, largest = execution.shapes(model.properties.max_tokens)
    wanted = _WARM_UP if execution.tensorrt is None else (smallest, tuned)
    shapes = (
        BatchShape(min(one.sequences, largest.sequences), min(one.tokens, largest.tokens))
        for one in wanted
    )
    yield from dict.fromkeys(shapes)


def _warm_up(shape: BatchShape, inputs: tuple[str, ...]) -> model_config_pb2.ModelWarmup:
    warm_up = model_config_pb2.ModelWarmup(
        name=f"{shape.sequences}_of_{shape.tokens}", batch_size=shape.sequences
    )
    for name in inputs:
        value = warm_up.inputs[name]
        value.data_type = model_config_pb2.TYPE_INT64
        value.dims.append(shape.tokens)
        if name == _MASK:
            value.input_data_file = _ones_name(shape)
        else:
            # Triton's random ids exceed every vocabulary, and the model would not load.
            value.zero_data = True
    return warm_up


def _ones_name(shape: BatchShape) -> str:
    return f"ones_{shape.tokens}"
