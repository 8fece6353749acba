"""The metrics of the embedding-inference-api, and of triton-grpc-proxy."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.metrics_core import Metric as Family

from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.machine.cpu_usage import CpuUsage
from embedgrpc.machine.gpu_memory import GpuMemory
from embedgrpc.server.caller import Service
from embedgrpc.server.loading.catalog import Catalog, ModelState
from embedgrpc.server.telemetry.call_record import CallRecord
from embedgrpc.server.telemetry.histogram import SECONDS, Histogram
from embedgrpc.server.telemetry.other_names import (
    OtherName,
    StepTimes,
    by_label,
    family,
    geometric,
    service_of,
)

_PROXY_SECONDS: Final = geometric(10e-6)
_SIZES: Final = tuple(float(2**power) for power in range(13))
_STATUSES: Final = ("success", "error")
_KINDS: Final[Mapping[Service, str]] = {Service.EMBED: "embed", Service.RERANK: "rerank"}
_ITEMS: Final[Mapping[str, str]] = {
    "embed": "inference_embed_items_total",
    "rerank": "inference_rerank_documents_total",
}

NAMES: Final[Mapping[str, OtherName]] = {
    "inference_embed_requests_total": OtherName(
        "counter", "Calls for embeddings", ("model", "status")
    ),
    "inference_embed_duration_seconds": OtherName(
        "histogram", "Time of those that succeeded", ("model",)
    ),
    "inference_embed_items_total": OtherName("counter", "Texts of such calls", ("model",)),
    "inference_rerank_requests_total": OtherName(
        "counter", "Calls for rankings", ("model", "status")
    ),
    "inference_rerank_duration_seconds": OtherName(
        "histogram", "Time of those that succeeded", ("model",)
    ),
    "inference_rerank_documents_total": OtherName("counter", "Documents of such calls", ("model",)),
    "model_load_duration_seconds": OtherName("gauge", "Time that loading took", ("model",)),
    "model_memory_bytes": OtherName("gauge", "Size of the weights", ("model",)),
    "models_loaded_total": OtherName("gauge", "Models that are ready"),
    "gpu_memory_used_bytes": OtherName("gauge", "Memory of all GPUs that is used"),
    "gpu_memory_total_bytes": OtherName("gauge", "Memory of all GPUs"),
    "cpu_usage_percent": OtherName(
        "gauge", "Share of the machine's CPU time since the last scrape"
    ),
    "tgp_request_count": OtherName(
        "unknown", "Calls for embeddings, rankings or labels", ("method",)
    ),
    "tgp_batch_size": OtherName("histogram", "Sequences of a batch"),
    "tgp_serialization_duration": OtherName("histogram", "Time that tokenizing took, in seconds"),
    "tgp_inference_duration": OtherName("histogram", "Time that batches took, in seconds"),
}


class InferenceNames:
    """Counts calls and batches as those services do; an observer of schedulers.

    Args:
        services: What each method does, by the name that records have.
        catalog: The models.
        gpus: Returns the memory of the GPUs that models use.
    """

    def __init__(
        self,
        services: Mapping[str, Service | None],
        catalog: Catalog,
        gpus: Callable[[], Sequence[GpuMemory]],
    ) -> None:
        self._services = services
        self._catalog = catalog
        self._gpus = gpus
        self._cpu = CpuUsage()
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._items: Counter[tuple[str, str]] = Counter()
        self._times: dict[tuple[str, str], Histogram] = {}
        self._methods: Counter[str] = Counter(dict.fromkeys(services, 0))
        self._tokenizing = Histogram(_PROXY_SECONDS)
        # The lanes of models report from their own threads.
        self._lock = threading.Lock()
        self._running = Histogram(_PROXY_SECONDS)
        self._sizes = Histogram(_SIZES)

    def add(self, record: CallRecord) -> None:
        """Count a call that has ended, if it is for embeddings, rankings or labels."""
        service = service_of(record, self._services)
        if service is None:
            return
        self._methods[record.method] += 1
        if record.works:
            self._tokenizing.add(StepTimes.of(record).tokenize_s, record.span)
        kind = _KINDS.get(service)
        if kind is None:
            return
        model = record.models[0].id if record.models else ""
        self._calls[kind, model, _STATUSES[not record.succeeded]] += 1
        self._items[kind, model] += record.inputs
        if record.succeeded:
            self._time(kind, model).add(record.total_s, record.span)

    def _time(self, kind: str, model: str) -> Histogram:
        found = self._times.get((kind, model))
        if found is None:
            found = self._times[kind, model] = Histogram(SECONDS)
        return found

    def batch_finished(self, report: BatchReport) -> None:
        """Add the report of a batch."""
        with self._lock:
            self._sizes.add(report.sequences)
            self._running.add(max(report.finished_ns - report.started_ns, 0) / 1e9)

    def collect(self) -> Iterator[Family]:
        """Return the metrics. From any thread."""
        models = [one.id for one in self._catalog]
        for kind in _KINDS.values():
            # Calls whose model is unknown have none.
            names = (*models, "")
            calls = [
                ({"model": model, "status": status}, self._calls[kind, model, status])
                for model in names
                for status in _STATUSES
            ]
            yield family(f"inference_{kind}_requests_total", NAMES, calls)
            times = {
                model: self._times.get((kind, model)) or Histogram(SECONDS) for model in models
            }
            yield family(f"inference_{kind}_duration_seconds", NAMES, by_label("model", times))
            items = [({"model": model}, self._items[kind, model]) for model in names]
            yield family(_ITEMS[kind], NAMES, items)
        yield from self._collect_state()
        methods = self._methods.copy()
        yield family(
            "tgp_request_count",
            NAMES,
            [({"method": name.lstrip("/")}, count) for name, count in methods.items()],
        )
        yield family("tgp_batch_size", NAMES, [({}, self._sizes.read())])
        yield family("tgp_serialization_duration", NAMES, [({}, self._tokenizing.read())])
        yield family("tgp_inference_duration", NAMES, [({}, self._running.read())])

    def _collect_state(self) -> Iterator[Family]:
        models = tuple(self._catalog)
        yield family(
            "model_load_duration_seconds",
            NAMES,
            [({"model": one.id}, one.load_s) for one in models],
        )
        yield family(
            "model_memory_bytes",
            NAMES,
            [({"model": one.id}, one.loaded.weight_bytes if one.loaded else 0) for one in models],
        )
        ready = sum(one.state is ModelState.READY for one in models)
        yield family("models_loaded_total", NAMES, [({}, ready)])
        gpus = self._gpus()
        used, total = (
            (sum(one) for one in zip(*((g.used_bytes, g.total_bytes) for g in gpus), strict=True))
            if gpus
            else (0, 0)
        )
        yield family("gpu_memory_used_bytes", NAMES, [({}, used)])
        yield family("gpu_memory_total_bytes", NAMES, [({}, total)])
        yield family("cpu_usage_percent", NAMES, [({}, self._cpu.percent())])
