"""Opens the metrics by the names of other servers that the settings ask for."""

from collections.abc import Callable, Iterable, Sequence

from embedgrpc.machine.gpu_memory import GpuMemory
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.process.call_methods import running_services
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.call_figures import CallMethod
from embedgrpc.server.telemetry.inference_names import InferenceNames
from embedgrpc.server.telemetry.other_names import OtherNames
from embedgrpc.server.telemetry.tei_names import TeiNames


def open_other_names(
    settings: Settings,
    methods: Iterable[CallMethod],
    catalog: Catalog,
    gpus: Callable[[], Sequence[GpuMemory]],
) -> Sequence[OtherNames]:
    """Return what counts by other names.

    Args:
        settings: They say which.
        methods: What is served.
        catalog: The models.
        gpus: Returns the memory of the GPUs that models use.
    """
    services = running_services(methods)
    found: list[OtherNames] = []
    if "tei" in settings.metrics_names:
        found.append(TeiNames(services, catalog))
    if "inference" in settings.metrics_names:
        found.append(InferenceNames(services, catalog, gpus))
    return found
