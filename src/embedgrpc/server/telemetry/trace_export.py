"""The export of spans with the OpenTelemetry SDK, if the standard `OTEL_*` variables ask for it.

Nothing becomes global: two servers in a process have two providers.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from embedgrpc.libraries.propagation import MISSING_PROPAGATORS
from embedgrpc.server.telemetry.batch_tracing import BatchTracer
from embedgrpc.server.telemetry.exporters import close_in_time, make_exporters, make_resource
from embedgrpc.server.telemetry.http_tracing import HttpTracer
from embedgrpc.server.telemetry.tracing import TracingInterceptor

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_logger = logging.getLogger(__name__)


class TraceExport:
    """The export of spans: made by `configure_tracing`; the caller shuts it down."""

    def __init__(self, provider: "TracerProvider", version: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("embedgrpc", version)

    def interceptor(self) -> TracingInterceptor:
        """Return the interceptor that traces calls; it must be the outermost one."""
        return TracingInterceptor(self._tracer)

    def http_tracer(self) -> HttpTracer:
        """Return what traces the calls of the HTTP port."""
        return HttpTracer(self._tracer)

    def batch_tracer(self) -> BatchTracer:
        """Return the observer that traces batches."""
        return BatchTracer(self._tracer)

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Export the spans that are left; see `close_in_time`."""
        return close_in_time(self._provider.shutdown, timeout_s)


def configure_tracing(service_version: str, environ: Mapping[str, str]) -> TraceExport | None:
    """Set up the export of spans if the environment asks for it; see `make_exporters`.

    Returns:
        The export, or None where nothing is to be exported: then the SDK is not even imported.

    Raises:
        ValueError: A variable is wrong.
    """
    exporters = make_exporters(environ, "TRACES")
    if not exporters:
        return None

    # Imported on demand: the SDK takes a tenth of a second to import.
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  # see above
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  # see above

    # The owner of the TraceExport shuts it down, once calls have ended.
    provider = TracerProvider(resource=make_resource(service_version), shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    for name in MISSING_PROPAGATORS:
        _logger.warning(
            "a propagator of OTEL_PROPAGATORS is not installed: traces are not continued from it",
            extra={"propagator": name},
        )
    return TraceExport(provider, service_version)
