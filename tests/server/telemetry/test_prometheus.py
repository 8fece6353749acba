"""Metrics as Prometheus reads them, from real servers."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as text

from embedgrpc.server.calls.budget import Holder
from embedgrpc.server.connections.listening import StartError
from embedgrpc.server.telemetry.metrics import METRICS
from embedgrpc.server.telemetry.prometheus import (
    OPENMETRICS_TYPE,
    TEXT_TYPE,
    family_name,
    prefers_openmetrics,
)
from tests.authority import HOSTS, Authority
from tests.server.conftest import Serve
from tests.server.http.http_client import HttpClient
from tests.server.service import CROSS, EMBED, PATIENCE_S, Service, until

# What Prometheus 2 and 3 send.
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,/;q=0.1"
)
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


async def scrape(address: str, accept: str = "", **request: object) -> tuple[str, str]:
    """Return the metrics that an address serves, and their media type."""
    scheme = "https" if request else "http"
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers={"accept": accept}) as session,
        session.get(f"{scheme}://{address}/metrics", **request) as response,  # type: ignore[arg-type] # as aiohttp has it
    ):
        assert response.status == 200
        return await response.text(), response.headers["content-type"]


def openmetrics(body: str) -> Iterator[Family]:
    """Parse OpenMetrics."""
    found: Iterator[Family] = openmetrics_parser.text_string_to_metric_families(body)  # type: ignore[no-untyped-call] # it has no annotations
    return found


def samples(families: Iterable[Family]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the values of all series by name and labels."""
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def value(service: Service, metric: str, **attributes: str) -> float:
    """The value of a metric, summed over the attributes that are not given."""
    return sum(
        one.value
        for one in service.server.figures.read()
        if one.metric == metric and attributes.items() <= one.attributes.items()
    )


async def test_both_formats_say_the_same(serve: Serve) -> None:
    """Two parsers read the same families from the HTTP port and from the address for metrics."""
    service = await serve(EMBED, CROSS, http_address="127.0.0.1:0", metrics_address="127.0.0.1:0")
    await service.client.embed("a", "a", "b")
    # A batch is counted after its results are on their way.
    shared = "embedgrpc.batch.shared_sequences"
    await until(lambda: value(service, shared, model="embed"))
    body, kind = await scrape(service.server.metrics_address)
    assert kind == TEXT_TYPE
    plain = samples(text(body))
    key = ("embedgrpc_batch_shared_sequences_total", (("model", "embed"),))
    assert plain[key] == value(service, shared, model="embed") == 1
    for address in (service.server.metrics_address, service.server.http_address):
        body, kind = await scrape(address, PROMETHEUS)
        assert kind == OPENMETRICS_TYPE
        assert body.endswith("# EOF\n")
        assert samples(openmetrics(body)).keys() >= plain.keys()


async def test_every_metric_has_its_type_and_labels(serve: Serve, tmp_path: Path) -> None:
    """Each family is one of the list, with its unit, its description and exactly its labels."""
    pair = Authority(tmp_path).issue("server", *HOSTS)
    service = await serve(metrics_address="127.0.0.1:0", **pair.settings)
    body, _ = await scrape(service.server.metrics_address, PROMETHEUS, ssl=False)
    families = {one.name: one for one in openmetrics(body)}
    here = {name: one for name, one in METRICS.items() if one.only in ("", "TLS")}
    assert families.keys() == {family_name(name, one) for name, one in here.items()}
    for name, metric in here.items():
        family = families[family_name(name, metric)]
        assert family.documentation == metric.description.removesuffix(".")
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.attributes), name
            assert math.isfinite(sample.value)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("text/plain;version=0.0.4", False),
        (PROMETHEUS, True),
        (PROMETHEUS_3, True),
        ("Application/OpenMetrics-Text", True),
        ("application/openmetrics-text; version=x; q=0.3, text/plain; q=0.4", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nonsense", True),
        (",;=;;q=q" * 10_000, False),
    ],
)
def test_the_format_follows_the_accept_header(accept: str, wanted: bool) -> None:  # noqa: FBT001 - a parameter
    """OpenMetrics goes only to clients that ask for it, and prefer it to plain text."""
    assert prefers_openmetrics(accept) is wanted


async def test_the_address_serves_nothing_else(serve: Serve) -> None:
    """Other paths and methods are refused; the port for calls is untouched."""
    service = await serve(metrics_address="127.0.0.1:0")
    address = service.server.metrics_address
    async with aiohttp.ClientSession(f"http://{address}") as session:
        for method, path, status in (
            ("GET", "/", 404),
            ("POST", "/metrics", 405),
            ("POST", "/v1/embeddings", 404),
            ("HEAD", "/metrics", 200),
        ):
            async with session.request(method, path) as response:
                assert response.status == status, path
    assert not service.server.http_address


async def test_it_is_scraped_from_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    """A Unix socket serves plain HTTP."""
    path = tmp_path / "metrics.sock"
    await serve(metrics_address=f"unix:{path}")
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://localhost/metrics") as response,
    ):
        assert "embedgrpc_event_loop_stalls_total " in await response.text()


async def test_a_port_in_use_is_refused_by_name(serve: Serve) -> None:
    """The error names the flag."""
    service = await serve(metrics_address="127.0.0.1:0")
    with pytest.raises(StartError, match="--metrics-address"):
        await serve(metrics_address=service.server.metrics_address)


async def test_a_scrape_needs_no_place(serve: Serve) -> None:
    """When calls take all places of the HTTP port, metrics are still answered, as probes are."""
    service = await serve(http_address="127.0.0.1:0")
    places = service.server.open_calls.limits.places
    for number in range(places.total):
        places.force(Holder(f"caller {number}", ""), 1)
    assert (await HttpClient(service).get("/v1/models")).status == 429
    body, _ = await scrape(service.server.http_address)
    assert "embedgrpc_batches_total" in body
