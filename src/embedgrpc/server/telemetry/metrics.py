"""The metrics of this server, and the readings that all of their exports share.

The engine always counts; its counters are read when the metrics are scraped or exported.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from embedgrpc.server.telemetry.histogram import Distribution, Histogram


class Kind(Enum):
    """How the values of a metric change."""

    # It only grows.
    COUNTER = auto()
    # It goes up and down, and its sum over servers has a meaning.
    AMOUNT = auto()
    # It goes up and down, and its sum over servers has none.
    GAUGE = auto()
    # It counts values by buckets.
    HISTOGRAM = auto()


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        kind: How its values change.
        unit: Its unit as OpenTelemetry writes it: `s`, `By`, `1`, or what is counted in braces.
        description: One sentence.
        attributes: The names of its attributes, which Prometheus calls labels.
        prometheus: Its name for Prometheus, where that is not made from its own.
        only: What a server must have for the metric to exist; empty if each has it.
    """

    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    prometheus: str = ""
    only: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a metric.

    Attributes:
        metric: The name of the metric.
        value: The count since the start; for others, the value now.
        attributes: The metric's attributes.
        distribution: What a histogram has counted; None for others.
    """

    metric: str
    value: float
    attributes: Mapping[str, str]
    distribution: Distribution | None = None

    @classmethod
    def of(cls, metric: str, histogram: Histogram, attributes: Mapping[str, str]) -> "Reading":
        """Read a histogram."""
        found = histogram.read()
        return cls(metric, found.count, attributes, found)


Read = Callable[[], Iterable[Reading]]

METRICS: Final[Mapping[str, Metric]] = {
    "embedgrpc.calls": Metric(
        Kind.COUNTER,
        "{call}",
        "Calls that have ended, without probes.",
        ("door", "method", "model", "caller_class", "status", "reason"),
    ),
    "embedgrpc.call.duration": Metric(
        Kind.HISTOGRAM,
        "s",
        "Time from the start of a call to its end, if it succeeded.",
        ("door", "method", "model"),
    ),
    "embedgrpc.call.inputs": Metric(
        Kind.COUNTER, "{input}", "Texts, documents and pairs of calls.", ("door", "model")
    ),
    "embedgrpc.call.tokens": Metric(
        Kind.COUNTER, "{token}", "Tokens that models read for calls.", ("door", "model")
    ),
    "embedgrpc.calls.open": Metric(
        Kind.AMOUNT, "{call}", "Calls that are open, without probes.", ("door",)
    ),
    "embedgrpc.refusals": Metric(
        Kind.COUNTER, "{call}", "Calls that the server turned away.", ("reason", "label")
    ),
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
        only="authentication",
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
    "embedgrpc.batch.duration": Metric(
        Kind.HISTOGRAM, "s", "Time that a batch ran.", ("model", "work_class")
    ),
    "embedgrpc.batch.padding": Metric(
        Kind.HISTOGRAM, "1", "Share of padding in the tokens of a batch.", ("model",)
    ),
    "embedgrpc.sequence.tokens": Metric(
        Kind.HISTOGRAM, "{token}", "Tokens of a sequence.", ("model",)
    ),
    "embedgrpc.tokenize.duration": Metric(
        Kind.HISTOGRAM,
        "s",
        "Time from the arrival of texts until they were tokenized.",
        ("model", "work_class"),
    ),
    "embedgrpc.queue.duration": Metric(
        Kind.HISTOGRAM,
        "s",
        "Time from then until the first batch with some of them began.",
        ("model", "work_class"),
    ),
    "embedgrpc.queue.work": Metric(
        Kind.AMOUNT,
        "s",
        "Time that the admitted tokens would take at the speed of recent batches.",
        ("model", "work_class"),
    ),
    "embedgrpc.model.state": Metric(
        Kind.AMOUNT, "{model}", "1 for the state that a model is in.", ("model", "state")
    ),
    "embedgrpc.model.load.duration": Metric(
        Kind.GAUGE, "s", "Time that loading a model took; 0 until it is loaded.", ("model",)
    ),
    "embedgrpc.model.weights": Metric(
        Kind.AMOUNT,
        "By",
        "Size of a model's weights; 0 where Triton runs it.",
        ("model",),
    ),
    "embedgrpc.triton.endpoint.up": Metric(
        Kind.AMOUNT,
        "{endpoint}",
        "1 for a Triton server that answers for a model.",
        ("model", "endpoint"),
        only="a model on Triton",
    ),
    "embedgrpc.gpu.memory.used": Metric(
        Kind.AMOUNT,
        "By",
        "Memory of a GPU that all processes use.",
        ("gpu",),
        only="a model on a GPU",
    ),
    "embedgrpc.gpu.memory.total": Metric(
        Kind.AMOUNT, "By", "Memory of a GPU.", ("gpu",), only="a model on a GPU"
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
        only="TLS",
    ),
    "embedgrpc.tls.reloads": Metric(
        Kind.COUNTER,
        "{reload}",
        "Changes of certificate files that were loaded, or refused.",
        ("outcome",),
        only="TLS",
    ),
    "embedgrpc.reloads": Metric(
        Kind.COUNTER, "{reload}", "Reloads of the settings, or refusals of them.", ("outcome",)
    ),
    "embedgrpc.event_loop.lag": Metric(
        Kind.GAUGE, "s", "How late the event loop was at most in a minute."
    ),
    "embedgrpc.event_loop.stalls": Metric(
        Kind.COUNTER, "{stall}", "Times that the event loop was late by over 0.1 s."
    ),
    "embedgrpc.build.info": Metric(
        Kind.GAUGE,
        "{build}",
        "Always 1; the labels are versions.",
        ("version", "python", "grpc", "onnxruntime"),
    ),
    "process.cpu.time": Metric(
        Kind.COUNTER, "s", "CPU time of the process.", prometheus="process_cpu_seconds"
    ),
    "process.memory.usage": Metric(
        Kind.AMOUNT,
        "By",
        "Memory that the process occupies.",
        prometheus="process_resident_memory_bytes",
    ),
    "process.open_file_descriptor.count": Metric(
        Kind.AMOUNT,
        "{file_descriptor}",
        "Open files, sockets and pipes.",
        prometheus="process_open_fds",
    ),
    "process.open_file_descriptor.limit": Metric(
        Kind.AMOUNT,
        "{file_descriptor}",
        "How many of them may be open.",
        prometheus="process_max_fds",
    ),
    "process.start.time": Metric(
        Kind.GAUGE,
        "s",
        "When the process was started, in seconds since 1970.",
        prometheus="process_start_time_seconds",
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
