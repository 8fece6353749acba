"""What is exported over OTLP: the figures that Prometheus scrapes, at intervals."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from embedgrpc.server.telemetry import metrics_export
from embedgrpc.server.telemetry.histogram import SECONDS, Histogram
from embedgrpc.server.telemetry.metrics import Figures, Reading
from embedgrpc.server.telemetry.metrics_export import MetricsExport, configure_metrics
from tests.server.service import PATIENCE_S

SPAN = SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
DELTA, CUMULATIVE = 1, 2


class Collector(MetricExporter):
    """Keeps what it gets, in the form in which it would be sent."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.exports: list[dict[str, Any]] = []
        self.came = threading.Semaphore(0)
        self.is_closed = False
        self.fails = fails

    def export(  # noqa: D102 - as the SDK describes it
        self, metrics_data: Any, timeout_millis: float = 0, **_: Any
    ) -> MetricExportResult:
        assert timeout_millis > 0
        (resource,) = encode_metrics(metrics_data).resource_metrics
        (scope,) = resource.scope_metrics
        self.exports.append({one.name: one for one in scope.metrics})
        self.came.release()
        if self.fails:
            raise ConnectionError
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:  # noqa: D102 - likewise
        del timeout_millis
        return True

    def shutdown(self, timeout_millis: float = 0, **_: Any) -> None:  # noqa: D102 - likewise
        del timeout_millis
        self.is_closed = True


class Counted:
    """Figures of a counter, an amount and a histogram."""

    def __init__(self) -> None:
        self.batches = 0
        self.times = Histogram(SECONDS)
        self.figures = Figures()
        self.figures.add(self._read)

    def _read(self) -> Iterator[Reading]:
        yield Reading("embedgrpc.batches", self.batches, {"model": "m"})
        yield Reading("embedgrpc.sequences.admitted", 5, {"model": "m", "work_class": "bulk"})
        attributes = {"model": "m", "work_class": "bulk"}
        yield Reading.of("embedgrpc.batch.duration", self.times, attributes)


def export(
    figures: Figures, collector: Collector, monkeypatch: pytest.MonkeyPatch, **environ: str
) -> MetricsExport:
    """Start an export to a collector."""
    monkeypatch.setattr(metrics_export, "make_exporters", lambda *_: [collector])
    started = configure_metrics("1", environ, figures)
    assert started
    return started


@pytest.mark.parametrize(
    ("preference", "counter", "histogram"),
    [
        ("", CUMULATIVE, CUMULATIVE),
        ("cumulative", CUMULATIVE, CUMULATIVE),
        ("delta", DELTA, DELTA),
        ("LowMemory", CUMULATIVE, DELTA),
    ],
)
def test_totals_or_changes_are_exported_as_asked(
    preference: str, counter: int, histogram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second export has the totals since the start, or what has changed since the first."""
    counted, collector = Counted(), Collector()
    exporting = export(
        counted.figures,
        collector,
        monkeypatch,
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=preference,
    )
    counted.batches = 3
    counted.times.add(0.001, SPAN)
    exporting._export()
    counted.batches = 4
    counted.times.add(100.0)
    assert exporting.shutdown(PATIENCE_S)
    assert collector.is_closed
    first, second = collector.exports

    (before,), (after,) = (
        one["embedgrpc.batch.duration"].histogram.data_points for one in collector.exports
    )
    assert second["embedgrpc.batch.duration"].histogram.aggregation_temporality == histogram
    assert (before.count, before.sum, before.bucket_counts[1]) == (1, 0.001, 1)
    assert list(before.explicit_bounds) == list(SECONDS)
    assert not before.HasField("min")
    (exemplar,) = before.exemplars
    assert int.from_bytes(exemplar.trace_id) == SPAN.trace_id
    assert int.from_bytes(exemplar.span_id) == SPAN.span_id
    assert (after.count, after.bucket_counts[-1]) == (1 if histogram == DELTA else 2, 1)
    assert (after.start_time_unix_nano == before.time_unix_nano) is (histogram == DELTA)

    sums = [one["embedgrpc.batches"].sum for one in collector.exports]
    assert [one.aggregation_temporality for one in sums] == [counter] * 2
    assert sums[0].is_monotonic
    values = [one.data_points[0].as_int for one in sums]
    assert values == ([3, 1] if counter == DELTA else [3, 4])
    amount = second["embedgrpc.sequences.admitted"].sum
    assert (amount.data_points[0].as_int, amount.is_monotonic) == (5, False)
    assert amount.aggregation_temporality == CUMULATIVE
    assert first.keys() == second.keys()


def test_it_goes_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A collector that is away costs one export; the next comes at the next interval."""
    collector = Collector(fails=True)
    exporting = export(Counted().figures, collector, monkeypatch, OTEL_METRIC_EXPORT_INTERVAL="5")
    assert collector.came.acquire(timeout=PATIENCE_S)
    assert collector.came.acquire(timeout=PATIENCE_S)
    assert exporting.shutdown(PATIENCE_S)
    assert "export of metrics failed" in caplog.text


def test_wrong_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong preference is an error; a wrong interval, and other buckets, are warnings."""
    figures, collector = Counted().figures, Collector()
    preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    with pytest.raises(ValueError, match=f"{preference}: 'backwards'"):
        export(figures, collector, monkeypatch, **{preference: "backwards"})
    aggregation = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    for value in ("soon", "0", "-5", "nan", "1e30"):
        exporting = export(
            figures,
            collector,
            monkeypatch,
            OTEL_METRIC_EXPORT_INTERVAL=value,
            **{aggregation: "base2_exponential_bucket_histogram"},
        )
        assert exporting.shutdown(PATIENCE_S)
    named = [getattr(one, "variable", "") for one in caplog.records]
    assert named == [aggregation, "OTEL_METRIC_EXPORT_INTERVAL"] * 5
