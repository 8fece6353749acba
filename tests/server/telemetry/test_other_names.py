"""The metrics by the names of other servers, from a real scrape."""

from typing import Any

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families as text

from embedgrpc.server.telemetry import inference_names, tei_names
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.conftest import Serve
from tests.server.http.http_client import HttpClient
from tests.server.service import CROSS, EMBED, PATIENCE_S, Service, until
from tests.server.telemetry.test_prometheus import PROMETHEUS, openmetrics, samples, scrape

NAMES = {**tei_names.NAMES, **inference_names.NAMES}


@pytest.fixture
async def service(serve: Serve) -> Service:
    """A server with all names."""
    return await serve(
        EMBED,
        CROSS,
        http_address="127.0.0.1:0",
        metrics_names="embedgrpc,tei,inference",
        health_interval_s=3600,
    )


async def values(service: Service, accept: str = "") -> dict[tuple[str, Any], float]:
    """Scrape all series by name and labels."""
    body, _ = await scrape(service.server.http_address, accept)
    return samples(openmetrics(body) if accept else text(body))


async def test_every_name_is_there_with_its_type_and_labels(service: Service) -> None:
    """In both formats; and a call of each kind makes no new series."""
    body, _ = await scrape(service.server.http_address, PROMETHEUS)
    families = {one.name: one for one in openmetrics(body)}
    for name, known in NAMES.items():
        is_counter = known.kind == "counter"
        family = families[name.removesuffix("_total") if is_counter else name]
        assert family.type == known.kind
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(known.labels), name
    before = await values(service)
    await service.client.embed("a", "b")
    await HttpClient(service).post("/v1/embeddings", {"input": "a"})
    with pytest.raises(grpc.aio.AioRpcError):
        await service.client.embed("")
    await until(lambda: not len(service.server.open_calls))
    after = await values(service)
    assert after.keys() == before.keys()
    assert {name for name, _ in before} >= {"embedgrpc_calls_total", "te_request_count"}


async def test_calls_count_as_those_servers_count_them(service: Service) -> None:
    """Single and batch, success and failure, items, documents, batches and times."""
    client = service.client
    await client.embed("a")
    await client.embed("a", "b", "c")
    await client.rerank.Rerank(
        rerank.RerankRequest(query="q", documents=["x", "y"], model="cross"), timeout=PATIENCE_S
    )
    for texts, model in ((["a", ""], ""), (["a"], "nobody"), ([], "")):
        with pytest.raises(grpc.aio.AioRpcError):
            await client.embed(*texts, model=model)
    await client.status("")
    await until(lambda: not len(service.server.open_calls))
    found = await values(service)

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("te_request_count", method="single") == 3
    assert value("te_request_count", method="batch") == 3
    assert value("te_request_success", method="single") == 1
    assert value("te_request_success", method="batch") == 2
    assert value("te_request_failure", err="validation") == 2
    assert value("te_request_failure", err="missing_values") == 1
    # What a call for an unknown model asks for is not read.
    assert value("te_embed_count") == 6
    assert value("te_embed_success") == 4
    assert value("te_predict_count") == value("te_predict_success") == 2
    assert value("te_request_duration_count") == 3
    assert value("te_embed_duration_count") == 2
    assert value("te_predict_inference_duration_count") == 1
    assert 0 < value("te_request_inference_duration_sum") <= value("te_request_duration_sum")
    assert value("te_queue_size") == 0

    assert value("inference_embed_requests_total", model="embed", status="success") == 2
    assert value("inference_embed_requests_total", model="embed", status="error") == 2
    assert value("inference_embed_requests_total", model="", status="error") == 1
    assert value("inference_embed_items_total", model="embed") == 6
    assert value("inference_embed_duration_seconds_count", model="embed") == 2
    assert value("inference_rerank_requests_total", model="cross", status="success") == 1
    assert value("inference_rerank_documents_total", model="cross") == 2
    assert value("models_loaded_total") == 2
    assert value("model_memory_bytes", model="embed") > 0
    assert value("model_load_duration_seconds", model="cross") > 0
    assert value("gpu_memory_total_bytes") == 0
    assert 0 <= value("cpu_usage_percent") <= 100
    assert value("tgp_request_count", method="embedgrpc.v1.EmbeddingService/Embed") == 5
    # Those of canaries are batches, too.
    assert value("tgp_batch_size_count") == value("te_batch_next_size_count") >= 3
    assert value("tgp_inference_duration_count") == value("tgp_batch_size_count")


async def test_the_own_names_can_be_left_out(serve: Serve) -> None:
    """Only what is named is served."""
    service = await serve(EMBED, metrics_address="127.0.0.1:0", metrics_names=("tei",))
    body, _ = await scrape(service.server.metrics_address)
    names = {name for name, _ in samples(text(body))}
    assert names
    assert all(name.startswith("te_") for name in names)


async def test_names_need_a_place(serve: Serve) -> None:
    """Without an address that serves metrics, they are refused."""
    with pytest.raises(ValueError, match="metrics_names needs"):
        await serve(EMBED, metrics_names="tei")
    with pytest.raises(ValueError, match="metrics_names"):
        await serve(EMBED, metrics_names="vllm", metrics_address="127.0.0.1:0")
