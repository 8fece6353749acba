"""Describes the server and its models in Triton's terms."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from tritonclient.grpc import model_config_pb2, service_pb2

from embedgrpc.server.kserve.parameters import PRIORITY_LEVELS
from embedgrpc.server.kserve.signature import VERSION, Task, Tensor, signature_of
from embedgrpc.server.kserve.statistics import Duration, ModelTotals
from embedgrpc.server.loading.catalog import Catalog, ModelState, ServedModel
from embedgrpc.server.settings.settings import Settings

_PLATFORM: Final = "embedgrpc"
# What Triton calls the parts of the protocol that are served.
_EXTENSIONS: Final = ("model_configuration", "parameters", "schedule_policy", "statistics")
_TYPES: Final[Mapping[str, model_config_pb2.DataType]] = {
    "BYTES": model_config_pb2.TYPE_STRING,
    "FP32": model_config_pb2.TYPE_FP32,
    "INT32": model_config_pb2.TYPE_INT32,
}
_STATES: Final[Mapping[ModelState, str]] = {
    ModelState.LOADING: "LOADING",
    ModelState.READY: "READY",
    ModelState.FAILED: "UNAVAILABLE",
    ModelState.UNAVAILABLE: "UNAVAILABLE",
}
_REASONS: Final[Mapping[ModelState, str]] = {
    ModelState.FAILED: "it could not be loaded",
    ModelState.UNAVAILABLE: "it cannot be run now",
}


def describe_server() -> service_pb2.ServerMetadataResponse:
    """Return the name and the version of the server."""
    return service_pb2.ServerMetadataResponse(
        name="embedgrpc", version=version("embedgrpc"), extensions=_EXTENSIONS
    )


def describe_model(served: ServedModel) -> service_pb2.ModelMetadataResponse:
    """Return the tensors of a model.

    Raises:
        EngineError: It cannot be called now, or has no place in this protocol.
    """
    _, signature = signature_of(served)
    return service_pb2.ModelMetadataResponse(
        name=served.id,
        versions=[VERSION],
        platform=_PLATFORM,
        inputs=[_tensor(one) for one in signature.inputs],
        outputs=[_tensor(one) for one in signature.outputs],
    )


def _tensor(tensor: Tensor) -> service_pb2.ModelMetadataResponse.TensorMetadata:
    return service_pb2.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=(-1, *tensor.sizes)
    )


def configure_model(served: ServedModel, settings: Settings) -> service_pb2.ModelConfigResponse:
    """Return what load generators want to know of a model: its tensors and its largest batch.

    Raises:
        EngineError: It cannot be called now, or has no place in this protocol.
    """
    loaded, signature = signature_of(served)
    config = model_config_pb2.ModelConfig(
        name=served.id,
        platform=_PLATFORM,
        backend=_PLATFORM,
        max_batch_size=settings.max_inputs,
        input=[
            model_config_pb2.ModelInput(
                name=one.name,
                data_type=_TYPES[one.datatype],
                dims=one.sizes,
                optional=one.optional,
            )
            for one in signature.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(
                name=one.name, data_type=_TYPES[one.datatype], dims=one.sizes
            )
            for one in signature.outputs
        ],
        dynamic_batching=model_config_pb2.ModelDynamicBatching(
            priority_levels=PRIORITY_LEVELS, default_priority_level=1
        ),
    )
    config.version_policy.latest.num_versions = 1
    properties = loaded.properties
    values = {"fingerprint": loaded.fingerprint, "max_tokens": str(properties.max_tokens)}
    if signature.task is Task.CLASSIFY:
        # In the order of the scores.
        values["labels"] = json.dumps(properties.labels)
    for name, value in values.items():
        config.parameters[name].string_value = value
    return service_pb2.ModelConfigResponse(config=config)


def report_statistics(model: str, totals: ModelTotals) -> service_pb2.ModelStatistics:
    """Return the totals of a model."""
    return service_pb2.ModelStatistics(
        name=model,
        version=VERSION,
        last_inference=totals.last_ms,
        inference_count=totals.inputs,
        execution_count=totals.batches,
        inference_stats=service_pb2.InferStatistics(
            success=_duration(totals.success),
            fail=_duration(totals.failure),
            queue=_duration(totals.queue),
            compute_input=_duration(totals.tokenizing),
            compute_infer=_duration(totals.running),
            compute_output=_duration(totals.packing),
        ),
        batch_stats=[
            service_pb2.InferBatchStatistics(batch_size=size, compute_infer=_duration(spent))
            for size, spent in sorted(totals.by_size.items())
        ],
    )


def _duration(duration: Duration) -> service_pb2.StatisticDuration:
    return service_pb2.StatisticDuration(count=duration.count, ns=duration.ns)


def list_models(catalog: Catalog, *, only_ready: bool) -> service_pb2.RepositoryIndexResponse:
    """Return the models that the caller may use, with their states."""
    index = service_pb2.RepositoryIndexResponse.ModelIndex
    return service_pb2.RepositoryIndexResponse(
        models=[
            index(
                name=one.id,
                version=VERSION,
                state=_STATES[one.state],
                reason=_REASONS.get(one.state, ""),
            )
            for one in catalog.usable()
            if not only_ready or one.state is ModelState.READY
        ]
    )
