import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.backends.base import BackendError
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.server.telemetry.logs import HumanFormatter, JsonFormatter
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.failures import Failure, failure_of
from tests.server.hash_backend import WIDTH, HashBackend, vector_of
from tests.server.service import CROSS, EMBED, Service, serving, settings_for
from tests.server.span_receiver import receiving_spans
from tests.server.streams import Stream

CANARY = "canary4711"
TEXT = f"the secret is {CANARY}"
# A name is shown, and is no text; one that is too long to be a name may be a text.
NAME = "nobody"


def _quoting(error: Callable[[str], Exception]) -> Callable[[IntArray], FloatArray]:
    """A run that fails with the text in its message, and in that of its cause."""

    def answer(_ids: IntArray) -> FloatArray:
        raise error(TEXT) from LookupError(TEXT)

    return answer


def _foreign(_message: str) -> Exception:
    # A backend's own message never holds an input; its cause may.
    return BackendError("the run failed")


def _nan(_ids: IntArray) -> FloatArray:
    return np.full(WIDTH, np.nan, np.float32)


async def _embed_calls(service: Service) -> AsyncIterator[Awaitable[Any]]:
    """Calls with the text that fail in every way that does not depend on the backend."""
    client = service.client
    none = common.TRUNCATION_NONE
    for request in (
        pb.EmbedRequest(texts=[TEXT, ""]),
        pb.EmbedRequest(texts=[TEXT] * 9),
        pb.EmbedRequest(texts=[TEXT * 10_000], options=pb.EmbedOptions(truncation=none)),
        pb.EmbedRequest(texts=[TEXT * 90], options=pb.EmbedOptions(truncation=none)),
        pb.EmbedRequest(texts=[TEXT], model=NAME),
        pb.EmbedRequest(texts=[TEXT], model=TEXT * 10),
        pb.EmbedRequest(texts=[TEXT], model="cross"),
        pb.EmbedRequest(texts=[TEXT], options=pb.EmbedOptions(prompt_name=NAME)),
        pb.EmbedRequest(texts=[TEXT], options=pb.EmbedOptions(prompt_name=TEXT * 10)),
        pb.EmbedRequest(texts=[TEXT], options=pb.EmbedOptions(prompt_text=TEXT * 1000)),
        pb.EmbedRequest(texts=[TEXT], options=pb.EmbedOptions(dimensions=1000)),
    ):
        yield client.embedding.Embed(request)
    small = (("embedgrpc-max-response-bytes", "1"),)
    yield client.embedding.Embed(pb.EmbedRequest(texts=[TEXT]), metadata=small)
    wrong = (("embedgrpc-max-response-bytes", TEXT),)
    yield client.embedding.Embed(pb.EmbedRequest(texts=[TEXT]), metadata=wrong)
    for ranking in (
        rerank.RerankRequest(query="", documents=[TEXT]),
        rerank.RerankRequest(
            query=TEXT, documents=[TEXT], options=rerank.RerankOptions(instruction=TEXT)
        ),
        rerank.RerankRequest(
            query=TEXT, documents=[TEXT * 90], options=rerank.RerankOptions(truncation=none)
        ),
    ):
        yield client.rerank.Rerank(ranking)
    yield client.models.GetModel(models.GetModelRequest(model=NAME))
    yield client.models.ListModels(models.ListModelsRequest(page_token=TEXT))
    for path in ("Embed", "Nothing", CANARY):
        # A field that promises more bytes than there are, and one that is not UTF-8.
        for data in (b"\x0a\x7f" + TEXT.encode(), b"\x0a\x20\xff" + TEXT.encode() * 2):
            yield client.send_bytes(f"/embedgrpc.v1.EmbeddingService/{path}", data)


async def _stream(service: Service) -> list[str]:
    """A stream with bad items, each of its messages, and its end by a broken rule."""
    stream = await Stream.open(
        service.client, options=pb.EmbedOptions(truncation=common.TRUNCATION_NONE)
    )
    await stream.send((f"id {CANARY}", ""), ("long", TEXT * 90), ("good", TEXT))
    results = await stream.results(3)
    await stream.send(("a" * 200 + CANARY * 10, TEXT))
    failure = await stream.failure()
    return [result.error.message for result in results] + [failure.details, failure.trailing]


async def test_no_text_leaves_the_server(
    backend: HashBackend,
    cache_dir: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No status, trailing metadata, log line or span holds a text, however a call ends."""
    caplog.set_level(logging.DEBUG)
    failures: list[Failure] = []
    said: list[str] = []
    async with receiving_spans(monkeypatch) as spans:
        settings = settings_for(
            EMBED, CROSS, cache_dir=cache_dir, max_inputs=8, health_interval_s=3600
        )
        cross = HashBackend()
        cross.answer = lambda _ids: np.ones(1, np.float32)
        async with serving(
            settings,
            lambda model, *_: backend if model.id == "embed" else cross,
        ) as service:
            await service.client.embed(TEXT)
            await service.client.rerank.Rerank(rerank.RerankRequest(query=TEXT, documents=[TEXT]))
            failures += [await failure_of(call) async for call in _embed_calls(service)]
            said += await _stream(service)
            for answer in (_quoting(ValueError), _quoting(_foreign), _nan):
                backend.answer = answer
                failures.append(await failure_of(service.client.embed(TEXT)))
                said += await _failing_stream(service)
            backend.answer = vector_of
            backend.hold()
            failures.append(await failure_of(service.client.embed(TEXT, timeout=0.05)))
            backend.release()
            await service.check_alive()
    assert len({failure.reason for failure in failures}) >= 9
    said += [failure.details + failure.trailing for failure in failures]
    assert not [one for one in said if CANARY in one]

    assert len(caplog.records) > 10
    for formatter in (JsonFormatter(), HumanFormatter(), logging.Formatter()):
        for record in caplog.records:
            assert CANARY not in formatter.format(record)
            assert CANARY not in repr(record.__dict__)
    assert CANARY not in "".join(capfd.readouterr())

    assert b"embedgrpc.v1.EmbeddingService" in b"".join(spans)
    assert CANARY.encode() not in b"".join(spans)


async def _failing_stream(service: Service) -> list[str]:
    stream = await Stream.open(service.client)
    await stream.send(("a", TEXT))
    (result,) = await stream.results(1)
    assert result.WhichOneof("outcome") == "error"
    assert await stream.end() == []
    return [result.error.message]
