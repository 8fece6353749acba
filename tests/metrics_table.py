"""The tables of docs/metrics.md, generated from the metrics.

uv run python -m tests.metrics_table     writes them into the file
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from embedgrpc.server.telemetry import inference_names, tei_names
from embedgrpc.server.telemetry.metrics import METRICS, Kind, Metric
from embedgrpc.server.telemetry.other_names import OtherName
from embedgrpc.server.telemetry.prometheus import family_name

DOCUMENT = Path(__file__).parent.parent / "docs/metrics.md"
_TYPES = {
    Kind.COUNTER: "counter",
    Kind.AMOUNT: "gauge",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
}
_UNITS = {"s": "seconds", "By": "bytes", "1": ""}
_PLURALS = {"batch": "batches", "file_descriptor": "descriptors"}


def render(document: str) -> str:
    """Return the document with its tables up to date."""
    for title, lines in (
        ("Metrics", _own()),
        ("text-embeddings-inference", _others(tei_names.NAMES)),
        ("Other services", _others(inference_names.NAMES)),
    ):
        document = _replace(document, title, lines)
    return document


def _replace(document: str, title: str, lines: Iterable[str]) -> str:
    begin, end = f"<!-- {title}: begin -->\n", f"<!-- {title}: end -->"
    before, found, rest = document.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{DOCUMENT.name} has no place for {title!r}")
    return before + begin + "\n".join(lines) + "\n" + rest[rest.index(end) :]


def _own() -> Iterator[str]:
    yield "| Prometheus | OTLP | type | unit | labels | meaning |"
    yield "|---|---|---|---|---|---|"
    for name, metric in METRICS.items():
        total = "_total" if metric.kind is Kind.COUNTER else ""
        one = metric.unit.strip("{}")
        unit = _UNITS.get(metric.unit, _PLURALS.get(one, f"{one}s"))
        yield (
            f"| `{family_name(name, metric)}{total}` | `{name}` | {_TYPES[metric.kind]} | {unit} |"
            f" {_labels(metric.attributes)} | {metric.description}{_condition(metric)} |"
        )


def _others(names: Mapping[str, OtherName]) -> Iterator[str]:
    yield "| Prometheus | type | labels | meaning |"
    yield "|---|---|---|---|"
    for name, one in names.items():
        kind = "counter" if one.kind == "unknown" else one.kind
        yield f"| `{name}` | {kind} | {_labels(one.labels)} | {one.meaning}. |"


def _labels(names: Iterable[str]) -> str:
    return ", ".join(f"`{one}`" for one in names)


def _condition(metric: Metric) -> str:
    return f" Only with {metric.only}." if metric.only else ""


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text("utf-8")), "utf-8")
