"""Counters for OpenTelemetry, exported as the standard `OTEL_*` variables ask, or not at all.

The engine counts anyway; what it counted is read when it is time to export.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedgrpc.server.telemetry.otel_environment import (
    close_in_time,
    make_otlp_exporter,
    make_resource,
    read_exporters,
    read_protocol,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a counter stands at.

    Attributes:
        metric: Its name.
        value: How many there were since the start; of a gauge, how many there are.
        attributes: Of what.
    """

    metric: str
    value: float
    attributes: Mapping[str, str]


# Every metric: its unit, what it counts, and whether it only ever grows.
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
# What cannot be summed up over servers.
_GAUGES = frozenset({"embedgrpc.event_loop.lag"})


class Metrics:
    """Exports readings; made by `configure_metrics`, shut down by whoever asked for it.

    Args:
        provider: What reads and exports them.
        version: Version of this server, as the instrumentation scope's.
        read: Takes the readings.
    """

    def __init__(
        self, provider: "MeterProvider", version: str, read: Callable[[], Iterable[Reading]]
    ) -> None:
        from opentelemetry.metrics import Observation  # noqa: PLC0415  # as the SDK

        self._provider = provider
        meter = provider.get_meter("embedgrpc", version)

        def observe(metric: str) -> Callable[[Any], Iterable[Observation]]:
            return lambda _: [
                Observation(one.value, dict(one.attributes))
                for one in read()
                if one.metric == metric
            ]

        for metric, (unit, what, grows) in METRICS.items():
            if metric in _GAUGES:
                meter.create_observable_gauge(metric, [observe(metric)], unit, what)
            elif grows:
                meter.create_observable_counter(metric, [observe(metric)], unit, what)
            else:
                meter.create_observable_up_down_counter(metric, [observe(metric)], unit, what)

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Exports once more and closes the exporters. Blocks; never raises.

        Args:
            timeout_s: How long to wait.

        Returns:
            Whether everything was closed, and in time.
        """
        return close_in_time(self._provider.shutdown, timeout_s)


def configure_metrics(
    service_version: str, environ: Mapping[str, str], read: Callable[[], Iterable[Reading]]
) -> Metrics | None:
    """Sets up the export of metrics if the environment asks for it.

    It is asked for by `OTEL_METRICS_EXPORTER` (`otlp`, `console`, both with a comma, `none`) or,
    where that is unset, by `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`;
    see `embedgrpc.server.telemetry.trace_export.configure_tracing` for the rest. The SDK reads
    `OTEL_METRIC_EXPORT_INTERVAL`.

    Args:
        service_version: Version of this server, for the resource `service.version`.
        environ: The variables, normally `os.environ`.
        read: Takes the readings; called on a thread of the SDK's.

    Returns:
        What exports them, or None where nothing is to be exported.

    Raises:
        ValueError: A variable names an exporter or a protocol that there is not, or the exporter
            refuses one of its own variables.
    """
    names = read_exporters(environ, "METRICS")
    if not names:
        return None
    protocol = read_protocol(environ, "METRICS")

    # Imported on demand: the SDK and its exporters take a tenth of a second to import.
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415  # see above
    from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415  # see above
        PeriodicExportingMetricReader,
    )

    provider = MeterProvider(
        [PeriodicExportingMetricReader(_make_exporter(name, protocol)) for name in names],
        resource=make_resource(environ, service_version),
        # Whoever holds the Metrics shuts it down, once calls have ended.
        shutdown_on_exit=False,
    )
    _logger.info("metrics on", extra={"exporters": names, "protocol": protocol})
    return Metrics(provider, service_version, read)


def _make_exporter(name: str, protocol: str) -> "MetricExporter":
    if name == "console":
        from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415  # only where asked for
            ConsoleMetricExporter,
        )

        # Its own default is the stream of the moment of its import.
        return ConsoleMetricExporter(out=sys.stdout)
    exporter: MetricExporter = make_otlp_exporter(protocol, "metric_exporter", "OTLPMetricExporter")
    return exporter
