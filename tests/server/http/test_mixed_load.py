"""Calls of all doors at once are work of one kind: they share batches, and the order of turns."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from tokenizers import Tokenizer

from embedgrpc.v1 import embedding_service_pb2
from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.kserve.requests import KServe, request_for
from tests.server.service import FIXTURES, PATIENCE_S, Service, until

TOKENIZER = Tokenizer.from_file(str(FIXTURES / "bert-cls" / "tokenizer.json"))
# Bodies with these texts.
DOORS: Mapping[str, tuple[str, Callable[[list[str]], Any]]] = {
    "openai": ("/v1/embeddings", lambda texts: {"input": texts}),
    "openai base64": (
        "/v1/embeddings",
        lambda texts: {"input": texts, "encoding_format": "base64"},
    ),
    "cohere": ("/v2/embed", lambda texts: {"texts": texts}),
    "tei": ("/embed", lambda texts: {"inputs": texts}),
    "embedding-inference-api": ("/embed", lambda texts: {"input": texts}),
    "bge-m3 on fastapi": ("/embeddings/", lambda texts: {"sentences": texts}),
    "triton-grpc-proxy": ("/v1/embedding", lambda texts: [{"query": text} for text in texts]),
}
# The doors of the gRPC port, and of the HTTP port.
ALL = ("grpc", "kserve", *DOORS)
CALLER = "x-caller"


class Load:
    """Calls to a server whose backend is held up, and what it ran once it was released."""

    def __init__(self, service: Service, backend: HashBackend) -> None:
        self._service = service
        self._backend = backend
        self._http = HttpClient(service)
        self._calls: list[asyncio.Task[Any]] = []
        self._texts: dict[tuple[int, ...], str] = {}
        self._queued = 0

    async def block(self) -> None:
        """Occupy the lane, so that all else is queued."""
        self._backend.hold()
        self._calls.append(asyncio.ensure_future(self._service.client.embed("a blocking text")))
        await until(self._backend.running.is_set)

    async def call(self, door: str, *texts: str, caller: str = "", work_class: str = "") -> None:
        """Send a call, and wait until its texts are queued."""
        self._texts |= {tuple(TOKENIZER.encode(text).ids): text for text in texts}
        headers = {CALLER: caller} if caller else {}
        if work_class:
            headers["embedgrpc-work-class"] = work_class
        self._calls.append(asyncio.ensure_future(self._send(door, list(texts), headers)))
        self._queued += len(texts)
        await until(lambda: self._waiting() == self._queued)

    async def finish(self) -> list[list[str]]:
        """Let the backend run; return the texts of each batch after the blocking ones."""
        self._backend.release()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._calls)
        batches = [
            [
                self._texts.get(tuple(ids[mask == 1].tolist()), "")
                for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
            for batch in self._backend.batches
        ]
        return [batch for batch in batches if any(batch)]

    async def _send(self, door: str, texts: list[str], headers: Mapping[str, str]) -> None:
        if door == "grpc":
            await self._service.client.embedding.Embed(
                embedding_service_pb2.EmbedRequest(texts=texts),
                timeout=PATIENCE_S,
                metadata=tuple(headers.items()),
            )
            return
        if door == "kserve":
            await KServe(self._service).stub.ModelInfer(
                request_for(*texts), timeout=PATIENCE_S, metadata=tuple(headers.items())
            )
            return
        path, write = DOORS[door]
        reply = await self._http.post(path, write(texts), **headers)
        assert reply.status == 200, (door, reply.json)

    def _waiting(self) -> int:
        loaded = self._service.server.catalog.default.ready()
        return len(loaded.scheduler._dispatcher.queue)


@pytest.fixture
async def load(serve: Serve, backend: HashBackend) -> AsyncIterator[Load]:
    """A server whose batches hold four sequences, and whose callers have names."""
    service = await serve(
        backend=backend,
        http_address="127.0.0.1:0",
        kserve=True,
        batch_sequences=4,
        # Who is ahead by this many tokens waits for the others.
        batch_tokens=32,
        caller_metadata=CALLER,
    )
    load = Load(service, backend)
    await load.block()
    yield load
    backend.release()


@pytest.mark.parametrize("first", ALL)
async def test_a_batch_mixes_texts_of_several_doors(load: Load, first: str) -> None:
    """Whichever door a text came through, it shares a batch with those of the others."""
    others = [door for door in ALL if door != first][:3]
    texts = [f"text {word}" for word in ("one", "two", "red", "sea")]
    for door, text in zip((first, *others), texts, strict=True):
        await load.call(door, text)
    (batch,) = await load.finish()
    assert sorted(batch) == sorted(texts)


async def test_interactive_work_of_all_doors_goes_first(load: Load) -> None:
    """Bulk work that came earlier, through any door, runs after it."""
    for door in ("openai", "grpc", "tei"):
        await load.call(door, f"bulk one {door}", f"bulk two {door}", work_class="bulk")
    interactive = {f"now {door}" for door in ALL}
    for door in ALL:
        await load.call(door, f"now {door}")
    batches = await load.finish()
    ran = [text for batch in batches for text in batch]
    assert set(ran[: len(interactive)]) == interactive
    assert all(text.startswith("bulk") for text in ran[len(interactive) :])
    assert len(ran) == len(interactive) + 6


@pytest.mark.parametrize(
    ("greedy", "modest"),
    [
        ("openai", "grpc"),
        ("grpc", "tei"),
        ("tei", "cohere"),
        ("kserve", "grpc"),
        ("openai", "kserve"),
    ],
)
async def test_callers_share_fairly_across_doors(load: Load, greedy: str, modest: str) -> None:
    """A caller with many texts does not hold up one with few, whichever doors they use."""
    many = [f"many {number:02}" for number in range(24)]
    few = ["few 01", "few 02"]
    await load.call(greedy, *many, caller="greedy")
    await load.call(modest, *few, caller="modest")
    batches = await load.finish()
    ran = [text for batch in batches[:3] for text in batch]
    assert set(few) <= set(ran)
    assert sorted(text for batch in batches for text in batch) == sorted([*many, *few])


async def test_one_caller_has_one_share_through_all_doors(load: Load) -> None:
    """Calls through several doors give a caller no more turns than those through one."""
    for door in ("kserve", *DOORS):
        await load.call(door, *(f"many {door} {number}" for number in range(4)), caller="greedy")
    await load.call("grpc", "few 01", "few 02", caller="modest")
    batches = await load.finish()
    ran = [text for batch in batches[:3] for text in batch]
    assert {"few 01", "few 02"} <= set(ran)
