"""The export of metrics with OpenTelemetry, if the standard `OTEL_*` variables ask for it.

The SDK's instruments are not used: each would count a second time what is counted already, at
several microseconds a value, and none takes a histogram that was counted elsewhere. Its exporters
and its data model are.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from embedgrpc.server.telemetry.exporters import close_in_time, make_exporters, make_resource
from embedgrpc.server.telemetry.metrics import METRICS, Figures, Kind, Reading

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import DataT, MetricExporter, MetricsData
    from opentelemetry.sdk.resources import Resource

_logger = logging.getLogger(__name__)

_INTERVAL: Final = "OTEL_METRIC_EXPORT_INTERVAL"
_INTERVAL_MS: Final = 60_000.0
_TIMEOUT: Final = "OTEL_METRIC_EXPORT_TIMEOUT"
_TIMEOUT_MS: Final = 30_000.0
_TEMPORALITY: Final = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
# Which kinds are exported as changes since the last export. Our counters are read, which the
# specification calls asynchronous.
_CHANGES: Final[Mapping[str, frozenset[Kind]]] = {
    "cumulative": frozenset(),
    "delta": frozenset({Kind.COUNTER, Kind.HISTOGRAM}),
    "lowmemory": frozenset({Kind.HISTOGRAM}),
}
_AGGREGATION: Final = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
_EXPLICIT_BUCKETS: Final = "explicit_bucket_histogram"


class MetricsExport:
    """Exports metrics at intervals: made by `configure_metrics`; the caller shuts it down.

    Args:
        exporters: Where to.
        data: Makes what is exported next; for each exporter.
        interval_s: Time between two exports.
        timeout_s: Time limit for one.
    """

    def __init__(
        self,
        exporters: "Sequence[MetricExporter]",
        data: "Sequence[Callable[[], MetricsData]]",
        *,
        interval_s: float,
        timeout_s: float,
    ) -> None:
        self._exporters = tuple(zip(exporters, data, strict=True))
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-export", daemon=True)
        self._thread.start()

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Export once more; see `close_in_time`."""
        return close_in_time(self._close, timeout_s)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._export()

    def _close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._export()
        for exporter, _ in self._exporters:
            exporter.shutdown()

    def _export(self) -> None:
        for exporter, make in self._exporters:
            try:
                exporter.export(make(), timeout_millis=self._timeout_s * 1000)
            except Exception:
                # The next one may succeed.
                _logger.exception("export of metrics failed")


class _Snapshots:
    """Makes what is exported, from the figures.

    Args:
        figures: What to read them from.
        resource: Describes this service.
        version: Its version.
        changes: The kinds that are exported as changes since the last export.
    """

    def __init__(
        self, figures: Figures, resource: "Resource", version: str, changes: frozenset[Kind]
    ) -> None:
        self._figures = figures
        self._resource = resource
        self._version = version
        self._changes = changes
        self._began_ns = time.time_ns()
        self._last_ns = self._began_ns
        self._last: dict[tuple[str, frozenset[tuple[str, str]]], Reading] = {}

    def make(self) -> "MetricsData":
        """Read all figures."""
        from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415  # on demand, as the SDK
            Metric,
            MetricsData,
            ResourceMetrics,
            ScopeMetrics,
        )
        from opentelemetry.sdk.util.instrumentation import (  # noqa: PLC0415  # likewise
            InstrumentationScope,
        )

        readings: dict[str, list[Reading]] = {}
        for one in self._figures.read():
            readings.setdefault(one.metric, []).append(self._since_last(one))
        now_ns = time.time_ns()
        metrics = [
            Metric(
                name,
                METRICS[name].description,
                METRICS[name].unit,
                self._data(METRICS[name].kind, some, now_ns),
            )
            for name, some in readings.items()
        ]
        self._last_ns = now_ns
        scope = InstrumentationScope("embedgrpc", self._version)
        return MetricsData(
            [ResourceMetrics(self._resource, [ScopeMetrics(scope, metrics, "")], "")]
        )

    def _since_last(self, reading: Reading) -> Reading:
        if METRICS[reading.metric].kind not in self._changes:
            return reading
        key = (reading.metric, frozenset(reading.attributes.items()))
        last = self._last.get(key)
        self._last[key] = reading
        if last is None:
            return reading
        now, before = reading.distribution, last.distribution
        if now is not None and before is not None:
            counts = [new - old for new, old in zip(now.counts, before.counts, strict=True)]
            now = replace(now, counts=counts, sum=now.sum - before.sum)
        return replace(reading, value=reading.value - last.value, distribution=now)

    def _data(self, kind: Kind, readings: Iterable[Reading], now_ns: int) -> "DataT":
        from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415  # on demand, as the SDK
            AggregationTemporality,
            Gauge,
            Histogram,
            NumberDataPoint,
            Sum,
        )

        changes = kind in self._changes
        temporality = AggregationTemporality.DELTA if changes else AggregationTemporality.CUMULATIVE
        since_ns = self._last_ns if changes else self._began_ns
        if kind is Kind.HISTOGRAM:
            points = [_histogram_point(one, since_ns, now_ns) for one in readings]
            return Histogram(points, temporality)
        numbers = [
            NumberDataPoint(dict(one.attributes), since_ns, now_ns, one.value) for one in readings
        ]
        if kind is Kind.GAUGE:
            return Gauge(numbers)
        return Sum(numbers, temporality, is_monotonic=kind is Kind.COUNTER)


def _histogram_point(reading: Reading, since_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics import Exemplar  # noqa: PLC0415  # on demand, as the SDK
    from opentelemetry.sdk.metrics.export import HistogramDataPoint  # noqa: PLC0415  # likewise

    found = reading.distribution
    if found is None:
        raise ValueError(f"{reading.metric} has no distribution")
    return HistogramDataPoint(
        attributes=dict(reading.attributes),
        start_time_unix_nano=since_ns,
        time_unix_nano=now_ns,
        count=found.count,
        sum=found.sum,
        bucket_counts=list(found.counts),
        explicit_bounds=list(found.bounds),
        # They are not counted; None leaves them out.
        min=None,  # type: ignore[arg-type]  # as the protocol has it
        max=None,  # type: ignore[arg-type]  # likewise
        exemplars=[
            Exemplar({}, one.value, int(one.at_s * 1e9), one.span.span_id, one.span.trace_id)
            for one in found.exemplars.values()
            if one.at_s * 1e9 >= since_ns
        ],
    )


def configure_metrics(
    service_version: str, environ: Mapping[str, str], figures: Figures
) -> MetricsExport | None:
    """Set up the export of metrics if the environment asks for it; see `make_exporters`.

    `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_METRIC_EXPORT_TIMEOUT` and
    `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE` are followed.

    Returns:
        The export, or None where nothing is to be exported: then the SDK is not even imported.

    Raises:
        ValueError: A variable is wrong.
    """
    exporters = make_exporters(environ, "METRICS")
    if not exporters:
        return None
    preference = environ.get(_TEMPORALITY, "").strip().lower() or "cumulative"
    if preference not in _CHANGES:
        raise ValueError(f"{_TEMPORALITY}: {preference!r} is not one of {', '.join(_CHANGES)}")
    if environ.get(_AGGREGATION, "").strip().lower() not in ("", _EXPLICIT_BUCKETS):
        _logger.warning(
            "histograms have fixed buckets; the variable is not followed",
            extra={"variable": _AGGREGATION},
        )
    resource = make_resource(service_version)
    return MetricsExport(
        exporters,
        # One each: what an exporter sent last is its own.
        [
            _Snapshots(figures, resource, service_version, _CHANGES[preference]).make
            for _ in exporters
        ],
        interval_s=_milliseconds(environ, _INTERVAL, _INTERVAL_MS) / 1000,
        timeout_s=_milliseconds(environ, _TIMEOUT, _TIMEOUT_MS) / 1000,
    )


def _milliseconds(environ: Mapping[str, str], variable: str, default: float) -> float:
    text = environ.get(variable, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= threading.TIMEOUT_MAX * 1000:
        _logger.warning(
            "not a number of milliseconds; the default is used",
            extra={"variable": variable, "default": default},
        )
        return default
    return value
