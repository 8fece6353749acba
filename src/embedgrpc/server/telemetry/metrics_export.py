"""The export of metrics with OpenTelemetry, if the standard `OTEL_*` variables ask for it."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from embedgrpc.server.telemetry.exporters import close_in_time, make_exporters, make_resource
from embedgrpc.server.telemetry.metrics import METRICS, Figures, Kind

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider


class MetricsExport:
    """The export of metrics: made by `configure_metrics`; the caller shuts it down."""

    def __init__(self, provider: "MeterProvider", version: str, figures: Figures) -> None:
        from opentelemetry.metrics import Observation  # noqa: PLC0415  # on demand, as the SDK

        self._provider = provider
        meter = provider.get_meter("embedgrpc", version)

        def observe(name: str) -> Callable[[Any], Iterable[Observation]]:
            return lambda _: [
                Observation(one.value, dict(one.attributes))
                for one in figures.read()
                if one.metric == name
            ]

        create = {
            Kind.COUNTER: meter.create_observable_counter,
            Kind.AMOUNT: meter.create_observable_up_down_counter,
            Kind.GAUGE: meter.create_observable_gauge,
        }
        for name, metric in METRICS.items():
            create[metric.kind](name, [observe(name)], metric.unit, metric.description)

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Export once more; see `close_in_time`."""
        return close_in_time(self._provider.shutdown, timeout_s)


def configure_metrics(
    service_version: str, environ: Mapping[str, str], figures: Figures
) -> MetricsExport | None:
    """Set up the export of metrics if the environment asks for it; see `make_exporters`.

    The SDK reads `OTEL_METRIC_EXPORT_INTERVAL`, and reads the figures on a thread of its own.

    Returns:
        The export, or None where nothing is to be exported: then the SDK is not even imported.

    Raises:
        ValueError: A variable is wrong.
    """
    exporters = make_exporters(environ, "METRICS")
    if not exporters:
        return None

    # Imported on demand: the SDK takes a tenth of a second to import.
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415  # see above
    from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415  # see above
        PeriodicExportingMetricReader,
    )

    provider = MeterProvider(
        [PeriodicExportingMetricReader(exporter) for exporter in exporters],
        resource=make_resource(service_version),
        # The owner of the export shuts it down, once calls have ended.
        shutdown_on_exit=False,
    )
    return MetricsExport(provider, service_version, figures)
