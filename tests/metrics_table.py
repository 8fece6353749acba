"""The table of docs/metrics.md, generated from the metrics.

uv run python -m tests.metrics_table     writes it into the file
"""

from pathlib import Path

from embedgrpc.server.telemetry.metrics import METRICS, Kind, Metric
from embedgrpc.server.telemetry.prometheus import family_name

DOCUMENT = Path(__file__).parent.parent / "docs/metrics.md"
_BEGIN, _END = "<!-- Metrics: begin -->\n", "<!-- Metrics: end -->"
_TYPES = {
    Kind.COUNTER: "counter",
    Kind.AMOUNT: "gauge",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
}
_UNITS = {"s": "seconds", "By": "bytes", "1": ""}
_PLURALS = {"batch": "batches", "file_descriptor": "descriptors"}


def render(document: str) -> str:
    """Return the document with its table up to date."""
    before, found, rest = document.partition(_BEGIN)
    if not found or _END not in rest:
        raise ValueError(f"{DOCUMENT.name} has no place for the table")
    table = ["| Prometheus | OTLP | type | unit | labels | meaning |", "|---|---|---|---|---|---|"]
    for name, metric in METRICS.items():
        total = "_total" if metric.kind is Kind.COUNTER else ""
        one = metric.unit.strip("{}")
        unit = _UNITS.get(metric.unit, _PLURALS.get(one, f"{one}s"))
        labels = ", ".join(f"`{label}`" for label in metric.attributes)
        table.append(
            f"| `{family_name(name, metric)}{total}` | `{name}` | {_TYPES[metric.kind]} | {unit} |"
            f" {labels} | {metric.description}{_condition(metric)} |"
        )
    return before + _BEGIN + "\n".join(table) + "\n" + rest[rest.index(_END) :]


def _condition(metric: Metric) -> str:
    return f" Only with {metric.only}." if metric.only else ""


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text("utf-8")), "utf-8")
