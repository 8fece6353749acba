"""The description of a model by a server: inputs, outputs, the largest batch and more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import model_config_pb2

from embedgrpc.backends.base import BackendError

# Axes of an input: batch and tokens.
_INPUT_AXES = 2
_INPUT_TYPES = frozenset({"INT64", "INT32", "BOOL", "FP32", "FP16"})
_OUTPUT_TYPES = frozenset({"FP32", "FP16", "BF16", "FP64"})
_REQUIRED = ("input_ids", "attention_mask")
_TEXT_TYPE = "BYTES"
_OUR_PARAMETERS = "embedgrpc_"


@dataclass(frozen=True, slots=True)
class ServedTensor:
    """An input or an output.

    Attributes:
        name: Its name.
        datatype: The type of its values, as the protocol names it, such as "FP32".
        dims: The length of each axis after the batch; None if it is free.
    """

    name: str
    datatype: str
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class ServedGraph:
    """A model as a server describes it.

    Attributes:
        inputs: Its inputs, each [batch, tokens]; or a single one of texts.
        outputs: Its outputs, each [batch, ...].
        batch_max: The most sequences of a request; 0 for no limit.
        parameters: The parameters of its configuration.
        instances: The number of requests that the server runs at once.
        on_gpu: Whether it runs on GPUs.
        versions: The versions of the model that are served.
    """

    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]
    batch_max: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    instances: int = 1
    on_gpu: bool = False
    versions: tuple[str, ...] = ()

    @property
    def text(self) -> ServedTensor | None:
        """The input that takes texts; None for a model that takes token ids."""
        return next((one for one in self.inputs if one.datatype == _TEXT_TYPE), None)

    def find_difference(self, other: "ServedGraph") -> str:
        """Return what keeps this graph from replacing another; empty if nothing does.

        It may have other instances, a larger batch, and other parameters that are not ours.
        """
        for what, ours, theirs in (
            ("inputs", self.inputs, other.inputs),
            ("outputs", self.outputs, other.outputs),
        ):
            if sorted(ours, key=_name_of) != sorted(theirs, key=_name_of):
                return f"{what} {_list(ours)} instead of {_list(theirs)}"
        if self.batch_max and not 0 < other.batch_max <= self.batch_max:
            return f"max_batch_size {self.batch_max} instead of {other.batch_max}"
        mine, others = _identity(self.parameters), _identity(other.parameters)
        changed = sorted(key for key in mine | others if mine.get(key) != others.get(key))
        return f"another value of the parameter {changed[0]}" if changed else ""


def describe(metadata: Any, config: Any | None) -> ServedGraph:
    """Combine the answers of a server.

    Args:
        metadata: Its ModelMetadataResponse.
        config: Its ModelConfig; None from servers other than Triton.

    Raises:
        BackendError: The model takes neither token ids nor texts, or none of its outputs can be
            read.
    """
    name = metadata.name
    if config is not None and config.model_transaction_policy.decoupled:
        raise BackendError(f"the model {name} is decoupled, which is not supported")
    given = {tensor.name for tensor in metadata.inputs}
    takes_texts = [tensor.datatype for tensor in metadata.inputs] == [_TEXT_TYPE]
    describe_input = _describe_text if takes_texts else _describe_input
    inputs = tuple(describe_input(name, tensor) for tensor in metadata.inputs)
    for required in () if takes_texts else _REQUIRED:
        if required not in given:
            raise BackendError(
                f"the model {name} has no input {required}; it has {', '.join(sorted(given))}"
            )
    outputs = tuple(
        ServedTensor(tensor.name, tensor.datatype, _dims(tensor.shape[1:]))
        for tensor in metadata.outputs
        if tensor.datatype in _OUTPUT_TYPES and tensor.shape and tensor.shape[0] < 0
    )
    if not outputs:
        raise BackendError(
            f"the model {name} has no output of floating-point numbers for each sequence of a batch"
        )
    versions = tuple(metadata.versions)
    if config is None:
        return ServedGraph(inputs, outputs, 0, versions=versions)
    groups = [(group, max(group.count, 1) * max(len(group.gpus), 1)) for group in
              config.instance_group]  # fmt: skip
    gpu = model_config_pb2.ModelInstanceGroup.Kind.KIND_GPU
    return ServedGraph(
        inputs,
        outputs,
        config.max_batch_size,
        parameters={key: value.string_value for key, value in config.parameters.items()},
        instances=sum(count for _, count in groups) or 1,
        on_gpu=any(group.kind == gpu or group.gpus for group, _ in groups),
        versions=versions,
    )


def _describe_input(model: str, tensor: Any) -> ServedTensor:
    if tensor.datatype == _TEXT_TYPE:
        raise BackendError(
            f"the model {model} takes texts in its input {tensor.name} and has other inputs: only"
            " models that take token ids, or texts alone, can be served"
        )
    if tensor.datatype not in _INPUT_TYPES:
        raise BackendError(
            f"the model {model} has an input {tensor.name} of type {tensor.datatype}; it must be"
            f" one of {', '.join(sorted(_INPUT_TYPES))}"
        )
    # If max_batch_size is 0, the declared shape must include the axis of the batch.
    if len(tensor.shape) != _INPUT_AXES or any(size >= 0 for size in tensor.shape):
        raise BackendError(
            f"the model {model} has an input {tensor.name} of shape {list(tensor.shape)}: both"
            " batch and tokens must be free, [-1, -1]; set max_batch_size and dims: [ -1 ]"
        )
    return ServedTensor(tensor.name, tensor.datatype, _dims(tensor.shape[1:]))


def _describe_text(model: str, tensor: Any) -> ServedTensor:
    # [batch], [batch, 1], or [batch, any number of texts].
    batch, *others = tensor.shape or (0,)
    if batch >= 0 or others not in ([], [1], [-1]):
        raise BackendError(
            f"the model {model} takes texts in an input {tensor.name} of shape"
            f" {list(tensor.shape)}: it must take any number of them, [-1, 1]; set max_batch_size"
            " and dims: [ 1 ]"
        )
    return ServedTensor(tensor.name, tensor.datatype, _dims(others))


def _dims(shape: Sequence[int]) -> tuple[int | None, ...]:
    return tuple(None if size < 0 else size for size in shape)


def _name_of(tensor: ServedTensor) -> str:
    return tensor.name


def _identity(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that identify the model."""
    return {key: one for key, one in parameters.items() if key.startswith(_OUR_PARAMETERS)}


def _list(tensors: Sequence[ServedTensor]) -> str:
    sizes = ((one, ["-" if size is None else str(size) for size in one.dims]) for one in tensors)
    return ", ".join(f"{one.name} {one.datatype} [{', '.join(dims)}]" for one, dims in sizes)
