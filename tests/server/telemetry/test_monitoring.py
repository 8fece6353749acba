"""The alerts and the dashboard ask for metrics that a server has, in expressions that are right."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from embedgrpc.server.telemetry.metrics import METRICS, Kind
from embedgrpc.server.telemetry.prometheus import family_name
from tests.authority import HOSTS, Authority
from tests.server.conftest import Serve
from tests.server.service import CROSS, EMBED
from tests.server.telemetry.test_prometheus import PROMETHEUS, openmetrics, scrape

ROOT = Path(__file__).parent.parent.parent.parent
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
DASHBOARD = ROOT / "deploy/grafana/embedgrpc.json"
# What Prometheus and Grafana add.
ADDED_LABELS = {"job", "instance"}
ADDED_NAMES = {"up": ADDED_LABELS}

Names = dict[str, set[str]]


def alert_expressions() -> list[str]:
    """The expressions of all alerts."""
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    """The expressions of all panels and variables."""
    board = json.loads(DASHBOARD.read_text("utf-8"))
    panels = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    queries = [one["definition"] for one in board["templating"]["list"] if "definition" in one]
    found = [re.fullmatch(r"label_values\((.*), (\w+)\)", one) for one in queries]
    return panels + [f"sum by ({match[2]}) ({match[1]})" for match in found if match]


def parse(expression: str) -> Any:
    """Parse an expression, with what Grafana puts into it."""
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def asked(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Return the metrics that an expression asks for, with the labels that it uses."""
    if isinstance(node, promql_parser.VectorSelector):
        yield str(node.name), {one.name for one in node.matchers.matchers}
        return
    by: set[str] = set()
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        by = set(node.modifier.labels)
    children = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    for child in (*children, *(getattr(node, "args", None) or ())):
        if type(child).__module__ == promql_parser.VectorSelector.__module__:
            yield from ((name, labels | by) for name, labels in asked(child))


async def scraped(serve: Serve, folder: Path) -> Names:
    """Return the names of a real scrape with their labels, and those that other servers have."""
    pair = Authority(folder).issue("server", *HOSTS)
    service = await serve(EMBED, CROSS, metrics_address="127.0.0.1:0", **pair.settings)
    body, _ = await scrape(service.server.metrics_address, PROMETHEUS, ssl=False)
    names: Names = {}
    for family in openmetrics(body):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    for name, metric in METRICS.items():
        if metric.only:
            total = "_total" if metric.kind is Kind.COUNTER else ""
            names[family_name(name, metric) + total] = set(metric.attributes)
    return names


async def test_every_expression_asks_for_what_is_there(serve: Serve, tmp_path: Path) -> None:
    """Names and labels of alerts and dashboard are found in the scrape of a server."""
    known = ADDED_NAMES | await scraped(serve, tmp_path)
    for expressions in (alert_expressions(), dashboard_expressions()):
        assert len(expressions) > 10
        for expression in expressions:
            wanted = list(asked(parse(expression)))
            assert wanted, expression
            for name, labels in wanted:
                assert name in known, expression
                assert labels <= known[name] | ADDED_LABELS, expression


def test_wrong_expressions_are_noticed() -> None:
    """The parser refuses what is no PromQL; names and labels are found wherever they stand."""
    with pytest.raises(ValueError, match="paren"):
        parse("sum by (x (rate(a[5m]))")
    found = list(asked(parse('1 - sum by (x) (rate(a{b="c"}[5m])) / max(d offset 5m) > 0 or e')))
    assert found == [("a", {"b", "x"}), ("d", set()), ("e", set())]


def test_the_dashboard_is_whole() -> None:
    """Each panel has a place of its own, a title, and the data source that the user chooses."""
    board = json.loads(DASHBOARD.read_text("utf-8"))
    panels = board["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    assert len({one["title"] for one in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
    assert max(x for x, _ in taken) < 24
    variables = {one["name"] for one in board["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", "".join(dashboard_expressions())))
    assert used - {"__rate_interval"} <= variables


def promtool(*arguments: str, text: str = "") -> str:
    """Run promtool; return what it says."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; it is in Debian's package prometheus")
    done = subprocess.run(
        [program, *arguments], input=text, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_promtool_accepts_the_rules() -> None:
    """It finds no fault with them, and each alert fires when it should."""
    names = re.findall(r"- alert: (\w+)", ALERTS.read_text("utf-8"))
    assert f"SUCCESS: {len(names)} rules found" in promtool("check", "rules", str(ALERTS))
    tests = Path(__file__).parent / "alerts_test.yaml"
    assert "SUCCESS" in promtool("test", "rules", str(tests))
    text = tests.read_text("utf-8")
    for name in names:
        assert f"alertname: {name}," in text, "the test of a healthy server knows it"
        assert f'alertname="{name}"' in text, "the test of one in trouble knows it"


async def test_promtool_accepts_a_scrape(serve: Serve, tmp_path: Path) -> None:
    """Names, types and units are as Prometheus recommends."""
    pair = Authority(tmp_path).issue("server", *HOSTS)
    service = await serve(EMBED, CROSS, metrics_address="127.0.0.1:0", **pair.settings)
    body, _ = await scrape(service.server.metrics_address, ssl=False)
    assert not promtool("check", "metrics", text=body)


def test_prometheus_accepts_its_configuration() -> None:
    """That of the compose file names the server, and the alerts."""
    path = ROOT / "docker/prometheus.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", str(path))
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))
    server = compose["services"]["server"]
    assert target.partition(":")[0] == "server"
    address = server["environment"]["EMBEDGRPC_METRICS_ADDRESS"]
    assert address.partition(":")[2] == target.partition(":")[2]
    prometheus = compose["services"]["prometheus"]
    mounted = dict(one.split(":")[:2][::-1] for one in prometheus["volumes"] if "./" in one)
    assert mounted.keys() >= {*config["rule_files"]}
    for place, source in mounted.items():
        assert (ROOT / "docker" / source).exists(), place


def test_grafana_finds_its_dashboard() -> None:
    """The provisioned data source is the Prometheus of the compose file, and the folder has it."""
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))
    grafana = compose["services"]["grafana"]
    mounted = dict(
        one.split(":")[:2][::-1] for one in grafana["volumes"] if ".." in one or "./" in one
    )
    for place, source in mounted.items():
        assert (ROOT / "docker" / source).exists(), place
    provisioning = ROOT / "docker/grafana"
    (source,) = yaml.safe_load((provisioning / "datasources.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    (provider,) = yaml.safe_load((provisioning / "dashboards.yaml").read_text())["providers"]
    folder = mounted[provider["options"]["path"]]
    assert (ROOT / "docker" / folder).resolve() == DASHBOARD.parent
