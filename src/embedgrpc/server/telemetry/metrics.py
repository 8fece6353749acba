"""Metrics for OpenTelemetry, exported if the standard `OTEL_*` variables ask for it.

The engine always counts; its counters are read when the metrics are exported.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedgrpc.server.telemetry.exporters import close_in_time, make_exporters, make_resource

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a metric.

    Attributes:
        metric: The name of the metric.
        value: The count since the start; for a gauge, the value now.
        attributes: The metric's attributes.
    """

    metric: str
    value: float
    attributes: Mapping[str, str]


# Every metric: its unit, its description, and whether it only grows.
METRICS: Mapping[str, tuple[str, str, bool]] = {
    "embedgrpc.sequences": ("{sequence}", "Sequences by what became of them.", True),
    "embedgrpc.sequences.admitted": ("{sequence}", "Sequences that wait or run.", False),
    "embedgrpc.tokens.admitted": ("{token}", "Tokens that wait or run.", False),
    "embedgrpc.connections.open": ("{connection}", "Connections by listener.", False),
    "embedgrpc.connections.closed": (
        "{connection}",
        "Connections closed to stay within a limit.",
        True,
    ),
    "embedgrpc.tls.certificate.expiry": (
        "s",
        "When a certificate in use expires, in seconds since 1970.",
        False,
    ),
    "embedgrpc.tls.reloads": (
        "{reload}",
        "Changes of certificate files that were loaded, or refused.",
        True,
    ),
    "embedgrpc.credentials.reloads": (
        "{reload}",
        "Changed files of callers, and fetched keys, that were loaded, or refused.",
        True,
    ),
    "embedgrpc.batches": ("{batch}", "Batches that were run.", True),
    "embedgrpc.batch.sequences": ("{sequence}", "Sequences that were run in batches.", True),
    "embedgrpc.batch.shared_sequences": (
        "{sequence}",
        "Sequences that were not run, for they equalled one that was.",
        True,
    ),
    "embedgrpc.batch.tokens": ("{token}", "Tokens that were run in batches.", True),
    "embedgrpc.batch.padded_tokens": ("{token}", "Tokens that were computed for them.", True),
    "embedgrpc.event_loop.lag": ("s", "How late the event loop was at most in a minute.", False),
    "embedgrpc.event_loop.stalls": ("{stall}", "Times that it was late by over 0.1 s.", True),
}
# Those that cannot be summed over servers.
_GAUGES = frozenset({"embedgrpc.event_loop.lag", "embedgrpc.tls.certificate.expiry"})


class Metrics:
    """The export of metrics: made by `configure_metrics`; the caller shuts it down."""

    def __init__(
        self, provider: "MeterProvider", version: str, read: Callable[[], Iterable[Reading]]
    ) -> None:
        from opentelemetry.metrics import Observation  # noqa: PLC0415  # on demand, as the SDK

        self._provider = provider
        meter = provider.get_meter("embedgrpc", version)

        def observe(metric: str) -> Callable[[Any], Iterable[Observation]]:
            return lambda _: [
                Observation(one.value, dict(one.attributes))
                for one in read()
                if one.metric == metric
            ]

        for metric, (unit, description, grows) in METRICS.items():
            if metric in _GAUGES:
                meter.create_observable_gauge(metric, [observe(metric)], unit, description)
            elif grows:
                meter.create_observable_counter(metric, [observe(metric)], unit, description)
            else:
                meter.create_observable_up_down_counter(
                    metric, [observe(metric)], unit, description
                )

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Export once more; see `close_in_time`."""
        return close_in_time(self._provider.shutdown, timeout_s)


def configure_metrics(
    service_version: str, environ: Mapping[str, str], read: Callable[[], Iterable[Reading]]
) -> Metrics | None:
    """Set up the export of metrics if the environment asks for it; see `make_exporters`.

    The SDK reads `OTEL_METRIC_EXPORT_INTERVAL`, and calls `read` on a thread of its own.

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
        # The owner of the Metrics shuts it down, once calls have ended.
        shutdown_on_exit=False,
    )
    return Metrics(provider, service_version, read)
