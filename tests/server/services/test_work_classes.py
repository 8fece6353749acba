"""Classes, callers and measured budgets, as a client meets them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.call_metadata import begin_call
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.metrics import METRICS
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import model_service_pb2
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.service import EMBED, PATIENCE_S, Client, Service, serving, settings_for, until

INTERACTIVE, BULK = WorkClass.INTERACTIVE, WorkClass.BULK


async def embed(client: Client, *texts: str, **metadata: str) -> Any:
    """Embeds texts with metadata; the keys have underscores for their hyphens."""
    pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    return await client.embedding.Embed(
        pb.EmbedRequest(texts=texts), timeout=PATIENCE_S, metadata=pairs
    )


def fates(service: Service) -> dict[tuple[WorkClass, SequenceOutcome], int]:
    """The outcomes of the default model's inputs, without its health checks."""
    counted = dict(service.admission().ledger.outcome_counts)
    counted[INTERACTIVE, SequenceOutcome.ANSWERED] -= 1
    return {key: count for key, count in counted.items() if count}


async def test_a_call_states_its_class(serve: Serve, backend: HashBackend) -> None:
    """A unary call that says so is bulk work, a stream that says so interactive."""
    service = await serve(backend=backend)
    await embed(service.client, "a", embedgrpc_work_class="bulk")
    await embed(service.client, "b", embedgrpc_work_class="interactive")
    stream = service.client.embedding.StreamEmbed(
        metadata=[("embedgrpc-work-class", "interactive")], timeout=PATIENCE_S
    )
    await stream.write(pb.StreamEmbedRequest(setup=pb.StreamEmbedSetup()))
    batch = pb.StreamEmbedBatch(inputs=[pb.StreamEmbedInput(id="1", text="c")])
    await stream.write(pb.StreamEmbedRequest(batch=batch))
    await stream.done_writing()
    assert len([message async for message in stream]) == 2
    assert fates(service) == {
        (BULK, SequenceOutcome.ANSWERED): 1,
        (INTERACTIVE, SequenceOutcome.ANSWERED): 2,
    }


@pytest.mark.parametrize("named", ["urgent", "INTERACTIVE", ""])
async def test_an_unknown_class_is_refused(serve: Serve, backend: HashBackend, named: str) -> None:
    """An unknown class is an error that shows it, and those that there are."""
    service = await serve(backend=backend)
    failure = await failure_of(embed(service.client, "a", embedgrpc_work_class=named))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert failure.fields == ("embedgrpc-work-class",)
    key = "embedgrpc-work-class"
    assert failure.details == f"metadata {key} is '{named}'; it must be interactive or bulk"
    await service.check_alive()


async def test_a_bulk_call_waits_for_room(serve: Serve, backend: HashBackend) -> None:
    """A unary call of the bulk class is not refused when the queue is full: it waits."""
    service = await serve(backend=backend, max_queued_inputs=1)
    backend.hold()
    first = asyncio.ensure_future(embed(service.client, "a", embedgrpc_work_class="bulk"))
    await until(lambda: service.admission().inputs == 1)
    second = asyncio.ensure_future(embed(service.client, "b", embedgrpc_work_class="bulk"))
    late = service.client.embedding.Embed(
        pb.EmbedRequest(texts=["c"]), timeout=0.2, metadata=[("embedgrpc-work-class", "bulk")]
    )
    with pytest.raises(grpc.aio.AioRpcError) as expired:
        await late
    assert expired.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    backend.release()
    await asyncio.gather(first, second)
    await until(lambda: service.admission().inputs == 0)
    assert fates(service) == {(BULK, SequenceOutcome.ANSWERED): 2}


class _Context:
    """The call as its handler sees it."""

    def __init__(self, peer: str, **metadata: str | bytes) -> None:
        self._peer = peer
        self._metadata = tuple((key.replace("_", "-"), value) for key, value in metadata.items())

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata

    def time_remaining(self) -> None:
        return None


@pytest.mark.parametrize(
    ("context", "key", "caller"),
    [
        (_Context("ipv4:10.0.0.7:4711"), "", "ipv4:10.0.0.7"),
        (_Context("ipv6:%5B2001:db8::7%5D:4711"), "", "ipv6:[2001:db8::7]"),
        (_Context("ipv4:127.0.0.1:4711"), "", "ipv4:127.0.0.1"),
        (_Context("ipv6:%5B::1%5D:4711"), "", "ipv6:[::1]"),
        (_Context("unix:"), "", "unix"),
        (_Context("ipv4:10.0.0.7:4711", x_caller="search"), "", "ipv4:10.0.0.7"),
        (_Context("ipv4:10.0.0.7:4711", x_caller="search"), "x-caller", "search"),
        (_Context("ipv4:10.0.0.7:4711", x_other="search"), "x-caller", "ipv4:10.0.0.7"),
        (_Context("ipv4:10.0.0.7:4711", x_caller=b"\x01\xff"), "x-caller", "01ff"),
    ],
)
def test_who_calls(context: _Context, key: str, caller: str) -> None:
    """A caller is the name that a trusted proxy sends, or else an address without its port."""
    call = begin_call(
        context, INTERACTIVE, Settings(caller_metadata=key), priority=0, field="options.priority"
    )
    assert call.caller == caller


async def test_one_caller_does_not_crowd_out_another(serve: Serve, backend: HashBackend) -> None:
    """A caller with few inputs does not wait for another caller's backlog."""
    service = await serve(
        backend=backend,
        caller_metadata="x-caller",
        batch_tokens=28,
    )
    backend.hold()
    first = asyncio.ensure_future(embed(service.client, "first", x_caller="many"))
    await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    many = [
        asyncio.ensure_future(embed(service.client, f"many {number}", x_caller="many"))
        for number in range(40)
    ]
    await until(lambda: service.admission().inputs == 41)
    # Longer than the others, so that its batch can be told.
    few = asyncio.ensure_future(embed(service.client, "a " * 30, x_caller="few"))
    queue = service.server.catalog.default.ready().scheduler._dispatcher.queue
    await until(lambda: len(queue) == 41)
    backend.release()
    await asyncio.gather(few, first, *many)
    longest = [int(batch.attention_mask.sum(axis=1).max()) for batch in backend.batches]
    # Before it come the canary, what was running, and what the other caller is due before the
    # difference counts; some ten batches come after it.
    assert longest.index(32) <= 5
    assert len(longest) > 10


@pytest.mark.parametrize(("setting", "tokens"), [(0, 512), (333, 333)], ids=["default", "set"])
async def test_list_models_tells_the_budget(cache_dir: Path, setting: int, tokens: int) -> None:
    """ListModels returns the budget of the settings, or the default of the device."""
    async with serving(settings_for(EMBED, cache_dir=cache_dir, batch_tokens=setting)) as service:
        listed = await service.client.models.ListModels(model_service_pb2.ListModelsRequest())
        assert listed.models[0].batch_tokens == tokens


async def test_metrics_are_exported_where_the_environment_asks(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every metric is exported, with the outcome of every sequence."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "console")
    async with serving(settings_for(EMBED, cache_dir=cache_dir)) as service:
        await service.client.embed("a", "a", "b")
    exported = {
        metric["name"]: metric["data"]["data_points"]
        for line in _json_objects(capsys.readouterr().out)
        for scope in line["resource_metrics"][0]["scope_metrics"]
        for metric in scope["metrics"]
    }
    assert exported.keys() == {name for name, metric in METRICS.items() if not metric.only}
    sequences = exported["embedgrpc.sequences"]
    (answered,) = (one for one in sequences if one["value"])
    # The canary is one of them.
    assert answered["value"] == 4
    assert answered["attributes"] == {
        "model": "embed",
        "work_class": "interactive",
        "fate": "answered",
    }
    # The others stand there as well.
    assert len(sequences) == len(WorkClass) * len(SequenceOutcome)
    assert exported["embedgrpc.batch.shared_sequences"][0]["value"] == 1
    assert all(point["value"] == 0 for point in exported["embedgrpc.sequences.admitted"])


async def test_a_wrong_metrics_exporter_is_refused(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown exporter is an error at the start."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus-of-old")
    with pytest.raises(Exception, match="OTEL_METRICS_EXPORTER"):
        async with serving(settings_for(EMBED, cache_dir=cache_dir)):
            pass


def _json_objects(text: str) -> list[Any]:
    """Return concatenated JSON objects."""
    decoder = json.JSONDecoder()
    objects = []
    while text := text.lstrip():
        found, end = decoder.raw_decode(text)
        objects.append(found)
        text = text[end:]
    return objects
