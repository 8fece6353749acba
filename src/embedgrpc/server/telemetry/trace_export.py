"""The OpenTelemetry SDK, set up as the standard `OTEL_*` variables ask, or not at all.

This module decides whether spans are exported and over which protocol. The SDK and its exporters
read the rest from the environment of the process themselves: endpoint, headers, certificates,
timeouts, sampler, limits, resource attributes. Nothing becomes global: two servers in a process
have two providers.

Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP exporter".
"""

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from embedgrpc.libraries.propagation import MISSING_PROPAGATORS
from embedgrpc.server.telemetry.batch_tracing import BatchTracer
from embedgrpc.server.telemetry.otel_environment import (
    close_in_time,
    make_otlp_exporter,
    make_resource,
    read_exporters,
    read_protocol,
)
from embedgrpc.server.telemetry.tracing import TracingInterceptor

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_logger = logging.getLogger(__name__)


class TraceExport:
    """The export of spans: made by `configure_tracing`; the caller shuts it down.

    Args:
        provider: Where spans go. `shutdown` shuts it down.
        version: Version of this server, as the instrumentation scope's.
    """

    def __init__(self, provider: "TracerProvider", version: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("embedgrpc", version)

    def interceptor(self, *, server_address: str = "", server_port: int = 0) -> TracingInterceptor:
        """Makes the interceptor that gives calls their spans; install it outermost."""
        return TracingInterceptor(
            self._tracer, server_address=server_address, server_port=server_port
        )

    def batch_tracer(self) -> BatchTracer:
        """Makes what writes the spans of batches."""
        return BatchTracer(self._tracer)

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Sends the spans that are left and closes the exporters. Blocks; never raises.

        Call it from a thread other than the event loop's. A collector that does not answer costs
        the timeout and the spans, and is a line in the log.

        Args:
            timeout_s: How long to wait.

        Returns:
            Whether everything was closed, and in time.
        """
        return close_in_time(self._provider.shutdown, timeout_s)


def configure_tracing(service_version: str, environ: Mapping[str, str]) -> TraceExport | None:
    """Sets up the export of spans if the environment asks for it.

    It is asked for by `OTEL_TRACES_EXPORTER` (`otlp`, `console`, both with a comma, `none`) or,
    where that is unset, by `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    `OTEL_SDK_DISABLED=true` beats both. `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`, else
    `OTEL_EXPORTER_OTLP_PROTOCOL`, is `http/protobuf` (the default) or `grpc`. As the
    specification wants it, an empty variable is an unset one.

    Args:
        service_version: Version of this server, for the resource `service.version`.
        environ: The variables, normally `os.environ`.

    Returns:
        What the server needs, or None where nothing is to be exported: then the SDK is not even
        imported.

    Raises:
        ValueError: A variable names an exporter or a protocol that there is not, or the exporter
            refuses one of its own variables.
    """
    names = read_exporters(environ, "TRACES")
    if not names:
        return None
    protocol = read_protocol(environ, "TRACES")

    # Imported on demand: the SDK and its exporters take a tenth of a second to import.
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  # see above
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  # see above

    exporters = [_make_exporter(name, protocol) for name in names]
    provider = TracerProvider(
        resource=make_resource(environ, service_version),
        # The owner of the TraceExport shuts it down, once calls have ended.
        shutdown_on_exit=False,
    )
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    for name in MISSING_PROPAGATORS:
        _logger.warning(
            "a propagator of OTEL_PROPAGATORS is not installed: traces are not continued from it",
            extra={"propagator": name},
        )
    _logger.info("tracing on", extra={"exporters": names, "protocol": protocol})
    return TraceExport(provider, service_version)


def _make_exporter(name: str, protocol: str) -> "SpanExporter":
    if name == "console":
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415  # only where asked for
            ConsoleSpanExporter,
        )

        # Its own default is the stream of the moment of its import.
        return ConsoleSpanExporter(out=sys.stdout)
    exporter: SpanExporter = make_otlp_exporter(protocol, "trace_exporter", "OTLPSpanExporter")
    return exporter
