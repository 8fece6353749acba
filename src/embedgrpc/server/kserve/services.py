"""The service of the KServe v2 protocol, as Triton's clients call it."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from embedgrpc.engine.errors import ModelNotFoundError
from embedgrpc.server.kserve.description import (
    configure_model,
    describe_model,
    describe_server,
    list_models,
    report_statistics,
)
from embedgrpc.server.kserve.infer_call import InferCall, find_model, renamed_errors
from embedgrpc.server.kserve.inference import infer
from embedgrpc.server.kserve.signature import SERVICE
from embedgrpc.server.kserve.statistics import InferenceStatistics
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.services.health import HealthService
from embedgrpc.server.settings.settings import Settings

_FIXED_MODELS: Final = "the models are those of the settings"
_NO_SHARED_MEMORY: Final = "send tensors in the request"
# Methods of Triton that are not served, and why.
_NOT_SERVED: Final[Mapping[str, str]] = {
    "ModelStreamInfer": "call ModelInfer, or StreamEmbed of embedgrpc.v1.EmbeddingService",
    "RepositoryModelLoad": _FIXED_MODELS,
    "RepositoryModelUnload": _FIXED_MODELS,
    "SystemSharedMemoryStatus": _NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": _NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": _NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "TraceSetting": "the settings of traces are those of OpenTelemetry",
    "LogSettings": "the settings of logs are those of the server",
}


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped library
    """Serves `inference.GRPCInferenceService`.

    Args:
        catalog: The models.
        settings: The settings.
        health: Which models are healthy.
        statistics: What batches took.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        health: HealthService,
        statistics: InferenceStatistics,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._health = health
        self._statistics = statistics
        for method, why in _NOT_SERVED.items():
            setattr(self, method, partial(_refuse, f"{method} is not served: {why}"))

    async def ServerLive(  # noqa: N802 - the protocol's name
        self, request: service_pb2.ServerLiveRequest, context: Any
    ) -> service_pb2.ServerLiveResponse:
        """Say that the process is alive."""
        del request, context
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: service_pb2.ServerReadyRequest, context: Any
    ) -> service_pb2.ServerReadyResponse:
        """Say whether the service is healthy."""
        del request, context
        return service_pb2.ServerReadyResponse(ready=self._health.is_serving(SERVICE))

    async def ModelReady(  # noqa: N802
        self, request: service_pb2.ModelReadyRequest, context: Any
    ) -> service_pb2.ModelReadyResponse:
        """Say whether a model is healthy; an unknown one is not."""
        del context
        try:
            served = find_model(self._catalog, request.name, request.version, field="name")
        except ModelNotFoundError:
            return service_pb2.ModelReadyResponse(ready=False)
        ready = self._health.is_serving(f"{SERVICE}/{served.id}")
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(  # noqa: N802
        self, request: service_pb2.ServerMetadataRequest, context: Any
    ) -> service_pb2.ServerMetadataResponse:
        """Describe the server."""
        del request, context
        return describe_server()

    async def ModelMetadata(  # noqa: N802
        self, request: service_pb2.ModelMetadataRequest, context: Any
    ) -> service_pb2.ModelMetadataResponse:
        """Describe the tensors of a model."""
        del context
        return describe_model(
            find_model(self._catalog, request.name, request.version, field="name")
        )

    async def ModelConfig(  # noqa: N802
        self, request: service_pb2.ModelConfigRequest, context: Any
    ) -> service_pb2.ModelConfigResponse:
        """Describe a model as Triton's configuration would."""
        del context
        served = find_model(self._catalog, request.name, request.version, field="name")
        return configure_model(served, self._settings)

    async def ModelStatistics(  # noqa: N802
        self, request: service_pb2.ModelStatisticsRequest, context: Any
    ) -> service_pb2.ModelStatisticsResponse:
        """Return the totals of a model, or of all."""
        del context
        models = self._catalog.usable()
        if request.name:
            models = [find_model(self._catalog, request.name, request.version, field="name")]
        return service_pb2.ModelStatisticsResponse(
            model_stats=[
                report_statistics(one.id, self._statistics.totals(one.id)) for one in models
            ]
        )

    async def RepositoryIndex(  # noqa: N802
        self, request: service_pb2.RepositoryIndexRequest, context: Any
    ) -> service_pb2.RepositoryIndexResponse:
        """List the models."""
        del context
        # There is one repository, whatever its name.
        return list_models(self._catalog, only_ready=request.ready)

    async def ModelInfer(self, request: service_pb2.ModelInferRequest, context: Any) -> bytes:  # noqa: N802
        """Embed texts, score pairs of them, or classify them.

        Returns:
            A `ModelInferResponse` in wire form.
        """
        began_ns = time.monotonic_ns()
        served = find_model(
            self._catalog, request.model_name, request.model_version, field="model_name"
        )
        succeeded = False
        try:
            with renamed_errors():
                infer_call = InferCall(request, context, served, self._settings)
                answer = await infer(infer_call)
            self._statistics.call_succeeded(served.id, began_ns, infer_call.call.times)
            succeeded = True
            return answer
        finally:
            if not succeeded:
                self._statistics.call_failed(served.id, began_ns)


async def _refuse(why: str, request: Any, context: Any) -> None:
    """Refuse a method. No reason of the contract has this status."""
    del request
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, why)


def describe_services() -> Sequence[Any]:
    """Return the descriptors of the services, for those who list their methods."""
    return tuple(service_pb2.DESCRIPTOR.services_by_name.values())


def add_kserve(
    server: grpc.aio.Server,
    catalog: Catalog,
    settings: Settings,
    health: HealthService,
    statistics: InferenceStatistics,
) -> None:
    """Add the service to a server."""
    service = InferenceService(catalog, settings, health, statistics)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
