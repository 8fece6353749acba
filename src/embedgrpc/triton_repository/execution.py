"""Describes how a Triton server runs a model, and writes that to its configuration."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from tritonclient.grpc import model_config_pb2

from embedgrpc.triton_repository.errors import RepositoryError

_Accelerator = model_config_pb2.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator
# The batch that TensorRT tunes its kernels for: short passages.
_TUNED_SEQUENCES = 32
_TUNED_TOKENS = 128


class Processor(StrEnum):
    """The kind of device that runs a model."""

    CPU = "cpu"
    GPU = "gpu"


class Precision(StrEnum):
    """The type in which TensorRT computes."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


# The names in Triton's ONNX Runtime backend.
_PRECISION_MODES = {
    Precision.FLOAT32: "FP32",
    Precision.FLOAT16: "FP16",
    Precision.BFLOAT16: "BF16",
}


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The size of a batch.

    Attributes:
        sequences: The number of sequences.
        tokens: The length of each.
    """

    sequences: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Execution:
    """How a Triton server runs a model.

    Attributes:
        processor: The kind of device.
        cores: The server's cores, which the instances of a model on the CPU share.
        instances: The number of batches of a model that run at once, per GPU or on all cores. Each
            instance holds its own weights in memory.
        max_batch_size: The most sequences of a batch.
        max_queue_delay_us: How long Triton waits for requests to batch; a single request waits as
            long.
        tensorrt: The type in which TensorRT computes; None for CUDA without TensorRT.
        tensorrt_cache: The server's folder that keeps TensorRT engines from one start to the next;
            empty for none.
    """

    processor: Processor
    cores: int
    instances: int = 1
    max_batch_size: int = 256
    max_queue_delay_us: int = 0
    tensorrt: Precision | None = None
    tensorrt_cache: str = ""

    def __post_init__(self) -> None:
        """Check that the values fit together.

        Raises:
            RepositoryError: They do not.
        """
        if self.processor is Processor.CPU:
            if self.tensorrt is not None:
                raise RepositoryError("tensorrt runs on a GPU: set kind to gpu")
            if self.instances > self.cores:
                raise RepositoryError(
                    f"instances {self.instances} is more than cores {self.cores}: each takes a core"
                )
        if self.tensorrt_cache and self.tensorrt is None:
            raise RepositoryError("tensorrt_cache is set, but tensorrt is not")

    @property
    def intra_op_threads(self) -> int:
        """The threads of one run; those of all instances together equal the cores."""
        return self.cores // self.instances if self.processor is Processor.CPU else 1

    def shapes(self, max_tokens: int) -> tuple[BatchShape, BatchShape, BatchShape]:
        """Return the smallest batch, the batch to tune for, and the largest."""
        tuned = BatchShape(
            min(_TUNED_SEQUENCES, self.max_batch_size), min(_TUNED_TOKENS, max_tokens)
        )
        return BatchShape(1, 1), tuned, BatchShape(self.max_batch_size, max_tokens)

    def fingerprint(self, content_hash: str) -> str:
        """Return the fingerprint of a graph's answers.

        It is the graph's content hash, unless TensorRT computes with less precision.
        """
        if self.tensorrt in (None, Precision.FLOAT32):
            return content_hash
        return hashlib.sha256(f"{content_hash}\ntensorrt {self.tensorrt}".encode()).hexdigest()

    def write(
        self,
        config: model_config_pb2.ModelConfig,
        *,
        inputs: tuple[str, ...],
        max_tokens: int,
    ) -> None:
        """Add the execution to a model's configuration."""
        kinds = model_config_pb2.ModelInstanceGroup
        kind = kinds.KIND_CPU if self.processor is Processor.CPU else kinds.KIND_GPU
        config.instance_group.add(kind=kind, count=self.instances)
        config.max_batch_size = self.max_batch_size
        config.dynamic_batching.SetInParent()
        config.dynamic_batching.max_queue_delay_microseconds = self.max_queue_delay_us
        threads = {
            "intra_op_thread_count": self.intra_op_threads,
            "inter_op_thread_count": 1,
            # Patterns are kept per shape, and few batches have the same shape.
            "enable_mem_pattern": 0,
        }
        for key, value in threads.items():
            config.parameters[key].string_value = str(value)
        if self.processor is Processor.GPU:
            accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
            if self.tensorrt is not None:
                accelerators.append(self._tensorrt(self.tensorrt, inputs, max_tokens))
            # The default multiplies with a mantissa of 10 bits instead of the 23 of float32.
            accelerators.append(_Accelerator(name="cuda", parameters={"use_tf32": "0"}))

    def _tensorrt(
        self, precision: Precision, inputs: tuple[str, ...], max_tokens: int
    ) -> model_config_pb2.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator:
        # Without a range of shapes, TensorRT rebuilds the engine for each new shape, for minutes.
        profile = {
            f"trt_profile_{bound}_shapes": ",".join(
                f"{name}:{shape.sequences}x{shape.tokens}" for name in inputs
            )
            for bound, shape in zip(("min", "opt", "max"), self.shapes(max_tokens), strict=True)
        }
        parameters = {"precision_mode": _PRECISION_MODES[precision], **profile}
        if self.tensorrt_cache:
            for kept in ("engine", "timing"):
                parameters[f"trt_{kept}_cache_enable"] = "1"
                parameters[f"trt_{kept}_cache_path"] = self.tensorrt_cache
        return _Accelerator(name="tensorrt", parameters=parameters)
