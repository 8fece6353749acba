"""The metrics of text-embeddings-inference.

Source: https://github.com/huggingface/text-embeddings-inference, `router/src/prometheus.rs`,
`core/src/infer.rs` and its documentation of metrics.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.metrics_core import Metric as Family

from embedgrpc.engine.errors import Reason
from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.caller import Service
from embedgrpc.server.loading.catalog import Catalog
from embedgrpc.server.telemetry.call_record import CallRecord
from embedgrpc.server.telemetry.histogram import Histogram
from embedgrpc.server.telemetry.other_names import (
    OtherName,
    StepTimes,
    family,
    geometric,
    service_of,
)

_SECONDS: Final = geometric(15e-6)
_LENGTHS: Final = tuple(float(2**power) for power in range(16))
_SIZES: Final = tuple(float(2**power) for power in range(13))
_TOKENS: Final = tuple(float(2**power) for power in range(21))
_METHODS: Final = ("single", "batch")
_ERRORS: Final[Mapping[str, str]] = {
    Reason.INVALID_REQUEST: "validation",
    Reason.INPUT_TOO_LONG: "validation",
    Reason.EMPTY_INPUT: "validation",
    Reason.MODEL_NOT_FOUND: "validation",
    Reason.UNAUTHENTICATED: "validation",
    Reason.PERMISSION_DENIED: "validation",
    Reason.UNSUPPORTED: "model_type",
    Reason.OVERLOADED: "overloaded",
    Reason.RATE_LIMITED: "overloaded",
    Reason.DEADLINE_EXPIRED: "dropped",
    "": "dropped",
    Reason.BACKEND_UNAVAILABLE: "inference",
    Reason.BACKEND_FAILED: "inference",
    Reason.NON_FINITE_OUTPUT: "inference",
    Reason.SHUTTING_DOWN: "inference",
    Reason.INTERNAL: "inference",
}
_BY_LABEL: Final[Mapping[str, str]] = {
    "TOO_MANY_INPUTS": "batch_size",
    "NO_INPUTS": "missing_values",
}
# It has no such failure here: what cannot be tokenized is invalid.
_NEVER: Final = "tokenization"
_TIMES: Final[Mapping[str, str]] = {
    "duration": "Time of a call, in seconds",
    "tokenization_duration": "Time that tokenizing took, in seconds",
    "queue_duration": "Time in the queue, in seconds",
    "inference_duration": "Time that batches took, in seconds",
}
_STEPS: Final = tuple(_TIMES)

_KINDS: Final[Mapping[str, str]] = {"embed": "embedded", "predict": "classified or ranked"}

NAMES: Final[Mapping[str, OtherName]] = {
    "te_request_count": OtherName(
        "unknown", "Calls for embeddings, rankings or labels", ("method",)
    ),
    "te_request_success": OtherName("unknown", "Those that succeeded", ("method",)),
    "te_request_failure": OtherName("unknown", "Those that failed", ("err",)),
    "te_request_input_length": OtherName("histogram", "Tokens of an input"),
    **{
        f"te_{kind}_{step}": OtherName("histogram", text)
        for kind in ("request", *_KINDS)
        for step, text in _TIMES.items()
    },
    **{
        f"te_{kind}_count": OtherName("unknown", f"Inputs to be {what}")
        for kind, what in _KINDS.items()
    },
    **{
        f"te_{kind}_success": OtherName("unknown", f"Inputs that were {what}")
        for kind, what in _KINDS.items()
    },
    "te_queue_size": OtherName("gauge", "Inputs that wait or run"),
    "te_batch_next_size": OtherName("histogram", "Sequences of a batch"),
    "te_batch_next_tokens": OtherName("histogram", "Tokens of a batch, with padding"),
}


class TeiNames:
    """Counts calls and batches as text-embeddings-inference does; an observer of schedulers.

    Args:
        services: What each method does, by the name that records have.
        catalog: The models.
    """

    def __init__(self, services: Mapping[str, Service | None], catalog: Catalog) -> None:
        self._services = services
        self._catalog = catalog
        self._counts: Counter[tuple[str, str]] = Counter()
        self._errors: Counter[str] = Counter(
            dict.fromkeys((*_ERRORS.values(), *_BY_LABEL.values(), _NEVER), 0)
        )
        self._inputs: Counter[str] = Counter()
        self._times = {
            f"te_{kind}_{step}": Histogram(_SECONDS)
            for kind in ("request", *_KINDS)
            for step in _STEPS
        }
        # The lanes of models report from their own threads.
        self._lock = threading.Lock()
        self._lengths = Histogram(_LENGTHS)
        self._sizes = Histogram(_SIZES)
        self._tokens = Histogram(_TOKENS)

    def add(self, record: CallRecord) -> None:
        """Count a call that has ended, if it is for embeddings, rankings or labels."""
        service = service_of(record, self._services)
        if service is None:
            return
        ranks = service is Service.RERANK
        method = "batch" if ranks or record.inputs > 1 else "single"
        kind = "embed" if service is Service.EMBED else "predict"
        self._counts["count", method] += 1
        self._inputs[f"te_{kind}_count"] += record.inputs
        if not record.succeeded:
            err = _BY_LABEL.get(record.label) or _ERRORS[record.reason]
            self._errors[err] += 1
            return
        self._counts["success", method] += 1
        self._inputs[f"te_{kind}_success"] += record.inputs - record.failed_inputs
        steps = StepTimes.of(record)
        values = (record.total_s, steps.tokenize_s, steps.queue_s, steps.run_s)
        for step, value in zip(_STEPS, values, strict=True):
            self._times[f"te_request_{step}"].add(value, record.span)
            self._times[f"te_{kind}_{step}"].add(value, record.span)

    def batch_finished(self, report: BatchReport) -> None:
        """Add the report of a batch."""
        with self._lock:
            self._sizes.add(report.sequences)
            self._tokens.add(report.padded_tokens)
            for length in report.lengths:
                self._lengths.add(length)

    def collect(self) -> Iterator[Family]:
        """Return the metrics. From any thread."""
        for what in ("count", "success"):
            values = [({"method": one}, self._counts[what, one]) for one in _METHODS]
            yield family(f"te_request_{what}", NAMES, values)
        errors = self._errors.copy()
        yield family("te_request_failure", NAMES, [({"err": err}, n) for err, n in errors.items()])
        for kind in _KINDS:
            for what in ("count", "success"):
                name = f"te_{kind}_{what}"
                yield family(name, NAMES, [({}, self._inputs[name])])
        for name, histogram in self._times.items():
            yield family(name, NAMES, [({}, histogram.read())])
        yield family("te_request_input_length", NAMES, [({}, self._lengths.read())])
        yield family("te_queue_size", NAMES, [({}, self._waiting())])
        yield family("te_batch_next_size", NAMES, [({}, self._sizes.read())])
        yield family("te_batch_next_tokens", NAMES, [({}, self._tokens.read())])

    def _waiting(self) -> int:
        admissions = [
            one for model in self._catalog if model.loaded for one in model.loaded.admissions
        ]
        return sum(one.ledger.inputs(each) for one in admissions for each in WorkClass)
