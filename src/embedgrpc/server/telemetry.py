"""The OpenTelemetry SDK, set up as the standard `OTEL_*` variables ask, or not at all.

This module decides whether spans are exported and over which protocol. The SDK and its exporters
read the rest from the environment of the process themselves: endpoint, headers, certificates,
timeouts, sampler, limits, resource attributes. Nothing becomes global: two servers in a process
have two providers.

Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP exporter".
"""

import importlib
import logging
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from embedgrpc.server.batch_tracing import BatchTracer
from embedgrpc.server.tracing import TracingInterceptor

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_logger = logging.getLogger(__name__)

_EXPORTERS: Final = ("otlp", "console", "none")
_PROTOCOLS: Final = ("grpc", "http/protobuf")
# What the specification recommends, and what most collectors listen for.
_DEFAULT_PROTOCOL: Final = "http/protobuf"


class Telemetry:
    """What a server that is traced needs: made by `configure`, shut down by whoever asked for it.

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
        closed = threading.Event()
        # The SDK's own shutdown waits 30 s and takes no limit.
        thread = threading.Thread(
            target=self._close, args=(closed,), name="telemetry-shutdown", daemon=True
        )
        thread.start()
        thread.join(timeout_s)
        if thread.is_alive():
            _logger.warning("telemetry not flushed in time", extra={"timeout_s": timeout_s})
        return closed.is_set()

    def _close(self, closed: threading.Event) -> None:
        try:
            self._provider.shutdown()
        except Exception:
            # The thread ends here: nobody is left to raise to, and the server is stopping.
            _logger.exception("telemetry shutdown failed")
        else:
            closed.set()


def configure(service_version: str, environ: Mapping[str, str]) -> Telemetry | None:
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
    names = _exporters(environ)
    if not names:
        return None
    protocol = _protocol(environ)

    # Imported on demand: the SDK and its exporters take a tenth of a second to import.
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # see above
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  # see above
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  # see above

    exporters = [_make_exporter(name, protocol) for name in names]
    provider = TracerProvider(
        resource=Resource.create(
            {**_service_name(environ), "service.version": service_version},
        ),
        # Whoever holds the Telemetry shuts it down, once calls have ended.
        shutdown_on_exit=False,
    )
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    _logger.info("tracing on", extra={"exporters": names, "protocol": protocol})
    return Telemetry(provider, service_version)


def _exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    named = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named:
        endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
        return ("otlp",) if endpoint else ()
    exporters = tuple(dict.fromkeys(name.strip().lower() for name in named.split(",")))
    for exporter in exporters:
        _require(exporter, "OTEL_TRACES_EXPORTER", _EXPORTERS)
    return () if "none" in exporters else exporters


def _protocol(environ: Mapping[str, str]) -> str:
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environ.get(variable, "").strip()
        if protocol:
            _require(protocol, variable, _PROTOCOLS)
            return protocol
    return _DEFAULT_PROTOCOL


def _require(value: str, variable: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{variable}: {value!r} is not one of {', '.join(known)}")


def _service_name(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns {} where `OTEL_RESOURCE_ATTRIBUTES` names the service, for the SDK reads that."""
    name = environ.get("OTEL_SERVICE_NAME", "")
    if name:
        return {"service.name": name}
    pairs = environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
    if "service.name" in {pair.partition("=")[0].strip() for pair in pairs}:
        return {}
    return {"service.name": "embedgrpc"}


def _make_exporter(name: str, protocol: str) -> "SpanExporter":
    if name == "console":
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415  # only where asked for
            ConsoleSpanExporter,
        )

        # Its own default is the stream of the moment of its import.
        return ConsoleSpanExporter(out=sys.stdout)
    package = "grpc" if protocol == "grpc" else "http"
    module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{package}.trace_exporter")
    try:
        exporter: SpanExporter = module.OTLPSpanExporter()
    except Exception as error:
        # Each exporter has exceptions of its own for a variable that it cannot read.
        raise ValueError(f"OTLP exporter over {protocol}: {error}") from error
    return exporter
