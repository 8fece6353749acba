"""Metrics by the names that other servers have for them, so that their dashboards go on.

They are not exported over OTLP: the dashboards of those servers read what Prometheus scrapes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from prometheus_client.metrics_core import Metric as Family

from embedgrpc.engine.scheduling.reports import BatchObserver
from embedgrpc.server.caller import Service
from embedgrpc.server.telemetry.call_record import CallRecord
from embedgrpc.server.telemetry.histogram import Distribution, Histogram
from embedgrpc.server.telemetry.prometheus import add_distribution

# A value, or what a histogram has counted, with its labels.
Value = tuple[Mapping[str, str], float | Distribution]

GEOMETRIC_STEP: Final = 1.5
GEOMETRIC_BUCKETS: Final = 35


def geometric(first_s: float) -> tuple[float, ...]:
    """Return the bounds of 35 buckets, each half as long again as the one before."""
    return tuple(first_s * GEOMETRIC_STEP**power for power in range(GEOMETRIC_BUCKETS))


Kind = Literal["counter", "unknown", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class OtherName:
    """A name of another server.

    Attributes:
        kind: Its type. A counter whose name does not end in `_total` is unknown to OpenMetrics.
        labels: The names of its labels.
        meaning: What its value is here.
    """

    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


class OtherNames(BatchObserver, Protocol):
    """The metrics of another server; an observer of schedulers."""

    def add(self, record: CallRecord) -> None:
        """Count a call that has ended. On the event loop."""
        ...

    def collect(self) -> Iterable[Family]:
        """Return the metrics. From any thread."""
        ...


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What the jobs of a call took on average, in seconds."""

    tokenize_s: float
    queue_s: float
    run_s: float

    @classmethod
    def of(cls, record: CallRecord) -> "StepTimes":
        """Return those of a call; zeros where it ran nothing."""
        times = [one.times for one in record.works]
        jobs = max(sum(one.jobs for one in times), 1)
        return cls(
            sum(one.tokenize_s for one in times) / jobs,
            sum(one.queue_s for one in times) / jobs,
            sum(one.run_s for one in times) / jobs,
        )


def family(name: str, known: Mapping[str, OtherName], values: Sequence[Value]) -> Family:
    """Make the family of a name."""
    about = known[name]
    made = Family(
        name.removesuffix("_total") if about.kind == "counter" else name, about.meaning, about.kind
    )
    for labels, value in values:
        if isinstance(value, Distribution):
            add_distribution(made, labels, value)
        else:
            made.add_sample(name, dict(labels), value)
    return made


def by_label(label: str, histograms: Mapping[str, Histogram]) -> Sequence[Value]:
    """Return histograms by the value of a label."""
    return [({label: value}, one.read()) for value, one in histograms.items()]


# The services whose calls run a model.
_RUNNING: Final = frozenset({Service.EMBED, Service.RERANK, Service.CLASSIFY})


def service_of(record: CallRecord, services: Mapping[str, Service | None]) -> Service | None:
    """Return what a call asks a model to do; None for a probe, or where no model runs.

    Args:
        record: The call.
        services: What each method does, by the name that records have; None where that depends on
            the model.
    """
    if record.is_probe or record.method not in services:
        return None
    service = services[record.method]
    if service is None and record.models:
        loaded = record.models[0].loaded
        if loaded is not None and (loaded.embedder or loaded.reranker):
            return Service.EMBED if loaded.embedder else Service.RERANK
    return service if service in _RUNNING else None
