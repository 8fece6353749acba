"""Histograms, and what the engine counts in them."""

import itertools

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from embedgrpc.server.telemetry.histogram import SECONDS, SHARES, TOKENS, Histogram
from embedgrpc.server.telemetry.metrics import Reading
from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.loading.triton_server import Upstream
from tests.server.service import EMBED, Service, until


def counted(service: Service, metric: str, **attributes: str) -> Reading:
    """The only reading with these attributes."""
    (found,) = (
        one
        for one in service.server.figures.read()
        if one.metric == metric and attributes.items() <= one.attributes.items()
    )
    return found


def test_buckets_double_from_half_a_millisecond() -> None:
    """The last is about a minute."""
    assert SECONDS[0] == 0.0005
    assert all(new == 2 * old for old, new in itertools.pairwise(SECONDS))
    assert 60 < SECONDS[-1] < 70
    for bounds in (SECONDS, TOKENS, SHARES):
        assert sorted(set(bounds)) == list(bounds)


@pytest.mark.parametrize(
    ("value", "bucket"), [(0, 0), (1, 0), (1.01, 1), (2, 1), (4, 2), (4.1, 3), (1e9, 3)]
)
def test_a_value_is_in_the_first_bucket_that_is_not_below_it(value: float, bucket: int) -> None:
    """A bound belongs to its bucket; what is above all bounds has one of its own."""
    histogram = Histogram((1.0, 2.0, 4.0))
    histogram.add(value)
    found = histogram.read()
    assert found.counts == tuple(int(bucket == one) for one in range(4))
    assert (found.count, found.sum) == (1, value)
    assert not found.exemplars


def test_the_latest_sampled_span_is_the_exemplar_of_its_bucket() -> None:
    """One that is not recorded, or none, changes nothing."""
    histogram = Histogram((1.0, 2.0))
    spans = [
        SpanContext(trace, 1, is_remote=False, trace_flags=TraceFlags(flags))
        for trace, flags in ((1, 1), (2, 1), (3, 0))
    ]
    for span in (*spans, None):
        histogram.add(0.5, span)
    histogram.add(7.0, spans[0])
    found = histogram.read()
    assert found.counts == (4, 0, 1)
    assert {bucket: one.span.trace_id for bucket, one in found.exemplars.items()} == {0: 2, 2: 1}


async def test_texts_are_counted_with_their_times(serve: Serve) -> None:
    """Each text counts its tokens, each job its waits, each batch its time; canaries do not."""
    service = await serve(EMBED, health_interval_s=3600)
    # That of the canary, which is counted after it was answered.
    ran = "embedgrpc.batch.duration"
    await until(lambda: counted(service, ran, work_class="interactive").value)
    before = counted(service, ran, work_class="interactive").value
    tokens = counted(service, "embedgrpc.sequence.tokens", model="embed")
    assert tokens.value == 0
    answer = await service.client.embed("a", "a", "two words and more")
    await until(lambda: counted(service, "embedgrpc.sequence.tokens").value)
    found = counted(service, "embedgrpc.sequence.tokens").distribution
    assert found
    assert (found.count, found.sum) == (3, answer.usage.input_tokens)
    for name in ("embedgrpc.tokenize.duration", "embedgrpc.queue.duration"):
        waits = counted(service, name, work_class="interactive").distribution
        assert waits
        assert waits.count == 1
        assert 0 <= waits.sum < 60
        assert counted(service, name, work_class="bulk").value == 0
    batch = counted(service, ran, work_class="interactive").distribution
    padding = counted(service, "embedgrpc.batch.padding").distribution
    assert batch
    assert padding
    assert batch.count == padding.count == before + 1
    # "a" ran once, with the longer text.
    assert padding.counts[0] == before


async def test_the_queue_is_told_in_seconds(serve: Serve, backend: HashBackend) -> None:
    """It is the admitted tokens at the speed of recent batches, and 0 when nothing waits."""
    service = await serve(backend=backend)
    assert counted(service, "embedgrpc.queue.work", work_class="interactive").value == 0
    admission = service.admission()
    with_tokens = admission.admit(inputs=1, tokens=1000, remaining_s=60)

    def is_told() -> bool:
        # The batch of a health check may change the speed in between.
        work = counted(service, "embedgrpc.queue.work", work_class="interactive")
        return work.value == pytest.approx(1000 * admission.drain_rate.token_s)

    await until(is_told)
    with_tokens.release_all()


async def test_models_show_their_state_and_size(serve: Serve) -> None:
    """A model that is served is ready, took some time to load, and has weights."""
    service = await serve(EMBED)
    states = {
        one.attributes["state"]: one.value
        for one in service.server.figures.read()
        if one.metric == "embedgrpc.model.state"
    }
    assert states == {"loading": 0, "ready": 1, "failed": 0, "unavailable": 0}
    assert counted(service, "embedgrpc.model.load.duration").value > 0
    loaded = next(iter(service.server.catalog)).ready()
    assert counted(service, "embedgrpc.model.weights").value == loaded.weight_bytes > 0


async def test_the_process_shows_what_it_uses(serve: Serve) -> None:
    """CPU time grows; memory, descriptors, start and versions are there."""
    service = await serve(EMBED)
    first = counted(service, "process.cpu.time").value
    await service.client.embed("a")
    assert counted(service, "process.cpu.time").value > first > 0
    assert counted(service, "process.memory.usage").value > 2**20
    limit = counted(service, "process.open_file_descriptor.limit").value
    assert 3 < counted(service, "process.open_file_descriptor.count").value < limit
    began = counted(service, "process.start.time").value
    assert began > 1.7e9
    # A change would look like a restart.
    assert counted(service, "process.start.time").value == began
    build = counted(service, "embedgrpc.build.info")
    assert build.value == 1
    assert all(build.attributes.values())


async def test_an_upstream_that_is_lost_shows(serve: Serve, upstream: Upstream) -> None:
    """Each Triton server of a model is 1, or 0 while it cannot be reached."""
    service = await serve(upstream.settings())
    up = counted(service, "embedgrpc.triton.endpoint.up", model="far")
    assert up.value == 1
    assert up.attributes["endpoint"] == upstream.server.address
    upstream.server.stop()
    await until(lambda: not counted(service, "embedgrpc.triton.endpoint.up").value)
