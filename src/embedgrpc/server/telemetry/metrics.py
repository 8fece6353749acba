"""The metrics of this server, and the readings that all of their exports share.

The engine always counts; its counters are read when the metrics are scraped or exported.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final


class Kind(Enum):
    """How the values of a metric change."""

    # It only grows.
    COUNTER = auto()
    # It goes up and down, and its sum over servers has a meaning.
    AMOUNT = auto()
    # It goes up and down, and its sum over servers has none.
    GAUGE = auto()


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        kind: How its values change.
        unit: Its unit as OpenTelemetry writes it: `s`, `By`, `1`, or what is counted in braces.
        description: One sentence.
        attributes: The names of its attributes, which Prometheus calls labels.
    """

    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a metric.

    Attributes:
        metric: The name of the metric.
        value: The count since the start; for others, the value now.
        attributes: The metric's attributes.
    """

    metric: str
    value: float
    attributes: Mapping[str, str]


Read = Callable[[], Iterable[Reading]]

METRICS: Final[Mapping[str, Metric]] = {
    "embedgrpc.sequences": Metric(
        Kind.COUNTER,
        "{sequence}",
        "Sequences by what became of them.",
        ("model", "work_class", "fate"),
    ),
    "embedgrpc.sequences.admitted": Metric(
        Kind.AMOUNT, "{sequence}", "Sequences that wait or run.", ("model", "work_class")
    ),
    "embedgrpc.tokens.admitted": Metric(
        Kind.AMOUNT, "{token}", "Tokens that wait or run.", ("model", "work_class")
    ),
    "embedgrpc.credentials.reloads": Metric(
        Kind.COUNTER,
        "{reload}",
        "Changed files of callers, and fetched keys, that were loaded, or refused.",
        ("setting", "outcome"),
    ),
    "embedgrpc.rate_limits.refusals": Metric(
        Kind.COUNTER,
        "{call}",
        "Calls that were refused because their callers exceeded a limit.",
        ("limit",),
    ),
    "embedgrpc.rate_limits.stream_wait": Metric(
        Kind.COUNTER, "s", "How long streams waited because their callers exceeded a limit."
    ),
    "embedgrpc.rate_limits.callers": Metric(
        Kind.AMOUNT, "{caller}", "Callers whose use is remembered."
    ),
    "embedgrpc.batches": Metric(Kind.COUNTER, "{batch}", "Batches that were run.", ("model",)),
    "embedgrpc.batch.sequences": Metric(
        Kind.COUNTER, "{sequence}", "Sequences that were run in batches.", ("model",)
    ),
    "embedgrpc.batch.shared_sequences": Metric(
        Kind.COUNTER,
        "{sequence}",
        "Sequences that were not run, for they equalled one that was.",
        ("model",),
    ),
    "embedgrpc.batch.tokens": Metric(
        Kind.COUNTER, "{token}", "Tokens that were run in batches.", ("model",)
    ),
    "embedgrpc.batch.padded_tokens": Metric(
        Kind.COUNTER, "{token}", "Tokens that were computed for them, with padding.", ("model",)
    ),
    "embedgrpc.connections.open": Metric(
        Kind.AMOUNT, "{connection}", "Open connections by listener.", ("listener",)
    ),
    "embedgrpc.connections.closed": Metric(
        Kind.COUNTER,
        "{connection}",
        "Connections that were closed to stay within a limit.",
        ("listener", "limit"),
    ),
    "embedgrpc.tls.certificate.expiry": Metric(
        Kind.GAUGE,
        "s",
        "When a certificate in use expires, in seconds since 1970.",
        ("certificate",),
    ),
    "embedgrpc.tls.reloads": Metric(
        Kind.COUNTER,
        "{reload}",
        "Changes of certificate files that were loaded, or refused.",
        ("outcome",),
    ),
    "embedgrpc.event_loop.lag": Metric(
        Kind.GAUGE, "s", "How late the event loop was at most in a minute."
    ),
    "embedgrpc.event_loop.stalls": Metric(
        Kind.COUNTER, "{stall}", "Times that the event loop was late by over 0.1 s."
    ),
}


class Figures:
    """The one source of all figures: whatever counts something adds what reads it."""

    def __init__(self) -> None:
        self._reads: tuple[Read, ...] = ()

    def add(self, read: Read) -> None:
        """Add readings. They are taken on any thread."""
        self._reads += (read,)

    def read(self) -> Iterator[Reading]:
        """Return the value of every metric. From any thread."""
        for read in self._reads:
            yield from read()
