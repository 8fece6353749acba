"""The exporters and the resource that the standard `OTEL_*` variables ask for.

The SDK's own auto-configuration is not used: it lives in a private module, it replaces the global
providers and functions of `logging`, an endpoint alone exports nothing, OTLP is gRPC by default,
and its shutdown waits 30 s for a collector that does not answer. What the SDK and its exporters
read themselves is left to them: endpoint, headers, certificates, timeouts, sampler, limits,
resource attributes.

Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP exporter".
"""

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

_logger = logging.getLogger(__name__)

Signal = Literal["TRACES", "METRICS"]

_EXPORTERS: Final = ("otlp", "console", "none")
_PROTOCOLS: Final = ("grpc", "http/protobuf")
# What the specification recommends, and what most collectors listen for.
_DEFAULT_PROTOCOL: Final = "http/protobuf"


def make_exporters(environ: Mapping[str, str], signal: Signal) -> list[Any]:
    """Return the exporters of a signal; none where the environment does not ask for it.

    It is asked for by `OTEL_TRACES_EXPORTER` (`otlp`, `console`, both with a comma, `none`) or,
    where that is unset, by `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    `OTEL_SDK_DISABLED=true` overrides both. `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`, else
    `OTEL_EXPORTER_OTLP_PROTOCOL`, is `http/protobuf` (the default) or `grpc`. For metrics,
    `METRICS` stands in place of `TRACES`. An empty variable is an unset one, as specified.

    Raises:
        ValueError: A variable names an unknown exporter or protocol, or the exporter refuses one
            of its own variables.
    """
    names = _read_exporters(environ, signal)
    if not names:
        return []
    protocol = _read_protocol(environ, signal)
    exporters = [_make_exporter(name, protocol, signal) for name in names]
    event = "tracing on" if signal == "TRACES" else "metrics on"
    _logger.info(event, extra={"exporters": names, "protocol": protocol})
    return exporters


def _read_exporters(environ: Mapping[str, str], signal: Signal) -> tuple[str, ...]:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    variable = f"OTEL_{signal}_EXPORTER"
    named = environ.get(variable, "").strip()
    if not named:
        endpoint = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or environ.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
        return ("otlp",) if endpoint else ()
    exporters = tuple(dict.fromkeys(name.strip().lower() for name in named.split(",")))
    for exporter in exporters:
        _require(exporter, variable, _EXPORTERS)
    return () if "none" in exporters else exporters


def _read_protocol(environ: Mapping[str, str], signal: Signal) -> str:
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environ.get(variable, "").strip()
        if protocol:
            _require(protocol, variable, _PROTOCOLS)
            return protocol
    return _DEFAULT_PROTOCOL


def _require(value: str, variable: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{variable}: {value!r} is not one of {', '.join(known)}")


def _make_exporter(name: str, protocol: str, signal: Signal) -> Any:
    registered = name
    if name == "otlp":
        registered = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    # Imported on demand: the SDK and its exporters take a tenth of a second to import.
    group = f"opentelemetry_{signal.lower()}_exporter"
    exporter = next(iter(entry_points(group=group, name=registered))).load()
    if name == "console":
        # Its default is what `sys.stdout` was when it was imported.
        return exporter(out=sys.stdout)
    try:
        return exporter()
    except Exception as error:
        # Each exporter raises exceptions of its own for a variable that it cannot read.
        raise ValueError(f"OTLP exporter over {protocol}: {error}") from error


def make_resource(service_version: str) -> "Resource":
    """Return the resource that describes this service; the environment may name the service."""
    from opentelemetry.sdk.resources import (  # noqa: PLC0415 - on demand, as above
        OTELResourceDetector,
        Resource,
    )

    named = Resource.create({"service.name": "embedgrpc"}).merge(OTELResourceDetector().detect())
    return named.merge(Resource({"service.version": service_version}))


def close_in_time(close: Callable[[], object], timeout_s: float) -> bool:
    """Export what is left and close exporters; return whether that succeeded in time.

    Blocks for at most the timeout, and then gives up what a collector has not accepted. Logs
    failures, and never raises.
    """
    closed = threading.Event()

    def run() -> None:
        try:
            close()
        except Exception:
            # The server is stopping: no caller can handle the exception.
            _logger.exception("telemetry shutdown failed")
        else:
            closed.set()

    thread = threading.Thread(target=run, name="telemetry-shutdown", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        _logger.warning("telemetry not flushed in time", extra={"timeout_s": timeout_s})
    return closed.is_set()
