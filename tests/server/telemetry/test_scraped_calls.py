"""What a scrape says of calls: traces, classes of callers, and nothing that clients write."""

from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from embedgrpc.v1 import embedding_service_pb2
from tests.server.conftest import Serve
from tests.server.http.http_client import HttpClient
from tests.server.identity.callers import KeyFile, by_grpc, by_http
from tests.server.service import EMBED, PATIENCE_S, serving, settings_for, until
from tests.server.span_receiver import receiving_spans
from tests.server.telemetry.test_prometheus import PROMETHEUS, openmetrics, scrape

TRACES = {"grpc": f"{1:032x}", "http": f"{2:032x}"}
CANARY = "canary-4711"


async def test_buckets_have_the_traces_of_their_calls(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest sampled call of a bucket is its exemplar in OpenMetrics; others leave none."""
    settings = settings_for(
        EMBED, cache_dir=cache_dir, http_address="127.0.0.1:0", health_interval_s=3600
    )
    async with receiving_spans(monkeypatch), serving(settings) as service:
        request = embedding_service_pb2.EmbedRequest(texts=["a text"])
        for trace, flags in ((TRACES["grpc"], "01"), (f"{3:032x}", "00")):
            parent = f"00-{trace}-b7ad6b7169203331-{flags}"
            await service.client.embedding.Embed(
                request, metadata=(("traceparent", parent),), timeout=PATIENCE_S
            )
        parent = f"00-{TRACES['http']}-b7ad6b7169203331-01"
        await HttpClient(service).post("/v1/embeddings", {"input": "a text"}, traceparent=parent)
        await until(lambda: not len(service.server.open_calls))
        address = service.server.http_address

        async def exemplars() -> dict[tuple[str, str], set[str]]:
            body, _ = await scrape(address, PROMETHEUS)
            found: dict[tuple[str, str], set[str]] = {}
            for family in openmetrics(body):
                for one in family.samples:
                    if one.exemplar:
                        place = (family.name, one.labels.get("door", ""))
                        trace = one.exemplar.labels["trace_id"]
                        found.setdefault(place, set()).add(trace)
                        assert one.exemplar.value <= float(one.labels["le"])
            return found

        found = await exemplars()
        duration = "embedgrpc_call_duration_seconds"
        assert {door: found[duration, door] for door in TRACES} == {
            door: {trace} for door, trace in TRACES.items()
        }
        waited = found["embedgrpc_queue_duration_seconds", ""]
        assert waited
        assert waited <= set(TRACES.values())
        body, _ = await scrape(address)
        assert TRACES["http"] not in body


async def test_nothing_that_clients_write_is_in_a_scrape(serve: Serve) -> None:
    """Neither texts nor names of models, callers, paths, methods or ids."""
    service = await serve(
        EMBED,
        http_address="127.0.0.1:0",
        metrics_names="embedgrpc,tei,inference",
        caller_metadata="x-caller",
    )
    named: tuple[tuple[str, str], ...] = (("x-caller", CANARY), ("x-request-id", CANARY))
    for request in ({"texts": [CANARY]}, {"texts": [CANARY], "model": CANARY}):
        message = embedding_service_pb2.EmbedRequest(**request)
        call = service.client.embedding.Embed(message, metadata=named, timeout=PATIENCE_S)
        if "model" in request:
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        else:
            await call
    http = HttpClient(service)
    body: dict[str, Any] = {"input": CANARY, "model": CANARY, CANARY: CANARY}
    await http.post("/v1/embeddings", body, x_caller=CANARY)
    await http.send("POST", f"/{CANARY}")
    await http.send(CANARY.upper(), "/v1/models")
    await until(lambda: not len(service.server.open_calls))
    for accept in ("", PROMETHEUS):
        text, _ = await scrape(service.server.http_address, accept)
        assert 'embedgrpc_calls_total{caller_class="anonymous"' in text
        assert CANARY not in text.lower()


async def test_callers_count_by_class(serve: Serve, tmp_path: Path) -> None:
    """Those with a key are of the class api_key, strangers are anonymous. No name shows."""
    keys = KeyFile(tmp_path)
    key = keys.add("a-name-of-a-caller")
    scraper = keys.add("prometheus", 'scopes = ["metrics"]')
    service = await serve(EMBED, http_address="127.0.0.1:0", **keys.settings)

    def counts() -> dict[tuple[str, str, str], float]:
        return {
            (one.attributes["door"], one.attributes["caller_class"], one.attributes["reason"]): (
                one.value
            )
            for one in service.server.figures.read()
            if one.metric == "embedgrpc.calls" and one.value
        }

    before = {
        tuple(one.attributes.items())
        for one in service.server.figures.read()
        if one.metric == "embedgrpc.calls"
    }
    for call in (by_grpc, by_http):
        await call(service, ("authorization", f"Bearer {key}"))
        await call(service)
    await until(lambda: not len(service.server.open_calls))
    assert counts() == {
        (door, *end): 1
        for door in ("grpc", "http")
        for end in (("api_key", ""), ("anonymous", "UNAUTHENTICATED"))
    }
    after = {
        tuple(one.attributes.items())
        for one in service.server.figures.read()
        if one.metric == "embedgrpc.calls"
    }
    assert after == before
    given = [("authorization", f"Bearer {scraper}")]
    reply = await HttpClient(service).send("GET", "/metrics", headers=given)
    text = reply.body.decode()
    assert 'caller_class="api_key"' in text
    assert "a-name-of-a-caller" not in text
    assert 'embedgrpc_refusals_total{label="NO_CREDENTIALS",reason="UNAUTHENTICATED"} 2.0' in text
