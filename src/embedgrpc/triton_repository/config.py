"""The configuration of a model in a Triton server, config.pbtxt."""

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
    """A model that is to be put into a repository.

    Attributes:
        name: What it is called there.
        source: Where tokenizer and properties can be read when it is served.
        properties: What it is.
        graph: What runs.
    """

    name: str
    source: str
    properties: ModelProperties
    graph: Graph


def make_config(model: RepositoryModel, execution: Execution) -> model_config_pb2.ModelConfig:
    """Describes a model in full, so that Triton has nothing to guess.

    Nothing in it makes Triton's queue bounded, ordered by priority or timed out, which would let
    requests wait for up to half a second while an instance is idle; nor does it cache responses,
    since Triton would cache those of failed requests.

    Args:
        model: The model.
        execution: How it is to be run.

    Returns:
        Its configuration. Axes are without that of the batch.
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
    """Writes a configuration as Triton reads it from config.pbtxt."""
    return _HEADER + str(text_format.MessageToString(config))


def warm_up_files(model: RepositoryModel, execution: Execution) -> Mapping[str, bytes]:
    """The files, by name, that the requests for warming up read from the folder `warmup`."""
    return {
        # Raw, little-endian, of one sequence.
        _ones_name(shape): np.ones(shape.tokens, dtype="<i8").tobytes()
        for shape in _warm_up_shapes(model, execution)
    }


def _warm_up_shapes(model: RepositoryModel, execution: Execution) -> Iterator[BatchShape]:
    """A lone short text and a batch."""
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
            # Random ids would be out of every vocabulary, and the model would not load.
            value.zero_data = True
    return warm_up


def _ones_name(shape: BatchShape) -> str:
    return f"ones_{shape.tokens}"
