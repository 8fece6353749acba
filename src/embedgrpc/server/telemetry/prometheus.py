"""Writes the metrics for Prometheus: in its text format, or in OpenMetrics.

Source: https://prometheus.io/docs/instrumenting/exposition_formats and
https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol

from prometheus_client import exposition as text
from prometheus_client import samples
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from embedgrpc.server.telemetry.histogram import Distribution, Exemplar
from embedgrpc.server.telemetry.metrics import METRICS, Figures, Kind, Metric

TEXT_TYPE: Final = text.CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS_TYPE: Final = openmetrics.CONTENT_TYPE_LATEST
_UNITS: Final[Mapping[str, str]] = {"s": "seconds", "By": "bytes", "1": "ratio"}
_FAMILIES: Final[Mapping[Kind, str]] = {
    Kind.COUNTER: "counter",
    Kind.AMOUNT: "gauge",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
}
# Weights in an Accept header: 0 to 1 with three digits (RFC 9110, section 12.4.2).
_WEIGHT = re.compile(r"\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*", re.IGNORECASE)
# A scrape's Accept header has some two hundred bytes.
_ACCEPT_CHARACTERS_MAX: Final = 2000


class Collects(Protocol):
    """Something that has metrics of its own."""

    def collect(self) -> Iterable[Family]:
        """Return them. From any thread."""
        ...


class MetricsPage:
    """What `/metrics` shows.

    Args:
        figures: What to read the metrics from; None to leave out our own.
        others: Metrics by the names of other servers.
    """

    def __init__(self, figures: Figures | None, others: Sequence[Collects] = ()) -> None:
        self._figures = figures
        self._others = others
        # Several scrapes at once would hold the interpreter lock in turn.
        self._writing = asyncio.Lock()

    async def write(self, accept: str) -> tuple[bytes, str]:
        """Write all metrics off the event loop; see `write_metrics`."""
        async with self._writing:
            return await asyncio.to_thread(
                write_metrics, self._figures, accept, others=self._others
            )


def write_metrics(
    figures: Figures | None, accept: str, *, others: Sequence[Collects] = ()
) -> tuple[bytes, str]:
    """Write all metrics. Takes milliseconds: not for the event loop.

    Args:
        figures: What to read ours from; None to leave them out.
        accept: The header of the request that says which formats its sender reads.
        others: Further metrics, by the names of other servers.

    Returns:
        The metrics, and their media type.
    """
    families = _Families(figures, others)
    # All names are plain, so that there is nothing to escape in them.
    escaping = openmetrics.ALLOWUTF8
    if prefers_openmetrics(accept):
        body: bytes = openmetrics.generate_latest(families, escaping)  # type: ignore[no-untyped-call] # it has no annotations
        return body, OPENMETRICS_TYPE
    return text.generate_latest(families, escaping), TEXT_TYPE


def prefers_openmetrics(accept: str) -> bool:
    """Return whether a request asks for OpenMetrics, and not rather for the text format."""
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for one in accept[:_ACCEPT_CHARACTERS_MAX].split(","):
        kind, *parameters = one.split(";")
        name = kind.strip().lower()
        if name in weights:
            found = [float(match[1]) for p in parameters if (match := _WEIGHT.fullmatch(p))]
            weights[name] = max(weights[name], found[0] if found else 1.0)
    asked, other = weights.values()
    return asked > 0 and asked >= other


def family_name(name: str, metric: Metric) -> str:
    """Return the name of a metric for Prometheus, without the `_total` of a counter."""
    if metric.prometheus:
        return metric.prometheus
    plain = name.replace(".", "_")
    unit = _UNITS.get(metric.unit)
    return f"{plain}_{unit}" if unit else plain


class _Families(Collector):
    """The figures in the form that prometheus_client writes."""

    def __init__(self, figures: Figures | None, others: Sequence[Collects]) -> None:
        self._figures = figures
        self._others = others

    def collect(self) -> Iterator[Family]:
        if self._figures is not None:
            yield from _own_families(self._figures)
        for other in self._others:
            yield from other.collect()


def _own_families(figures: Figures) -> Iterator[Family]:
    families = {
        name: Family(
            family_name(name, metric),
            metric.description.removesuffix("."),
            _FAMILIES[metric.kind],
            _UNITS.get(metric.unit, ""),
        )
        for name, metric in METRICS.items()
    }
    for reading in figures.read():
        family = families[reading.metric]
        if reading.distribution is not None:
            add_distribution(family, reading.attributes, reading.distribution)
            continue
        suffix = "_total" if family.type == "counter" else ""
        family.add_sample(family.name + suffix, dict(reading.attributes), reading.value)
    # A family without samples would be a name that no query finds.
    yield from (one for one in families.values() if one.samples)


def add_distribution(family: Family, attributes: Mapping[str, str], found: Distribution) -> None:
    """Add what a histogram has counted to a family."""
    total = 0
    for bucket, (bound, count) in enumerate(zip(_bounds(found.bounds), found.counts, strict=True)):
        total += count
        exemplar = found.exemplars.get(bucket)
        family.add_sample(
            f"{family.name}_bucket",
            {**attributes, "le": bound},
            total,
            exemplar=_exemplar(exemplar) if exemplar else None,
        )
    family.add_sample(f"{family.name}_sum", dict(attributes), found.sum)
    family.add_sample(f"{family.name}_count", dict(attributes), total)


@lru_cache
def _bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(repr, bounds), "+Inf")


def _exemplar(exemplar: Exemplar) -> samples.Exemplar:
    labels = {
        "trace_id": f"{exemplar.span.trace_id:032x}",
        "span_id": f"{exemplar.span.span_id:016x}",
    }
    return samples.Exemplar(labels, exemplar.value, exemplar.at_s)
