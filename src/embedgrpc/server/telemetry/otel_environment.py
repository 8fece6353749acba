"""What the standard `OTEL_*` variables ask for, as far as the SDK does not read it itself.

Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP exporter".
"""

import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

_logger = logging.getLogger(__name__)

Signal = Literal["TRACES", "METRICS"]

_EXPORTERS: Final = ("otlp", "console", "none")
_PROTOCOLS: Final = ("grpc", "http/protobuf")
# What the specification recommends, and what most collectors listen for.
_DEFAULT_PROTOCOL: Final = "http/protobuf"


def read_exporters(environ: Mapping[str, str], signal: Signal) -> tuple[str, ...]:
    """Names the exporters of a signal that are asked for; as a rule, an endpoint asks for one.

    Raises:
        ValueError: There is no such exporter.
    """
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


def read_protocol(environ: Mapping[str, str], signal: Signal) -> str:
    """Names the protocol over which a signal is exported.

    Raises:
        ValueError: There is no such protocol.
    """
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environ.get(variable, "").strip()
        if protocol:
            _require(protocol, variable, _PROTOCOLS)
            return protocol
    return _DEFAULT_PROTOCOL


def make_resource(environ: Mapping[str, str], service_version: str) -> "Resource":
    """Describes this service, for whatever is exported."""
    # Imported on demand: the SDK takes a tenth of a second to import.
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # see above

    return Resource.create({**_service_name(environ), "service.version": service_version})


def make_otlp_exporter(protocol: str, module: str, name: str) -> Any:
    """Makes an OTLP exporter of one of the two packages that have one of each kind.

    Args:
        protocol: What it speaks.
        module: The module of the package.
        name: The class.

    Raises:
        ValueError: It cannot read one of its variables.
    """
    package = "grpc" if protocol == "grpc" else "http"
    found = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{package}.{module}")
    try:
        return getattr(found, name)()
    except Exception as error:
        # Each exporter has exceptions of its own for a variable that it cannot read.
        raise ValueError(f"OTLP exporter over {protocol}: {error}") from error


def close_in_time(close: Callable[[], object], timeout_s: float) -> bool:
    """Sends what is left and closes exporters. Blocks; never raises.

    The SDK's own shutdown waits 30 s for a collector that does not answer.

    Args:
        close: Closes them.
        timeout_s: How long to wait.

    Returns:
        Whether everything was closed, and in time.
    """
    closed = threading.Event()

    def run() -> None:
        try:
            close()
        except Exception:
            # The thread ends here: nobody is left to raise to, and the server is stopping.
            _logger.exception("telemetry shutdown failed")
        else:
            closed.set()

    thread = threading.Thread(target=run, name="telemetry-shutdown", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        _logger.warning("telemetry not flushed in time", extra={"timeout_s": timeout_s})
    return closed.is_set()


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
