import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.conftest import Serve
from tests.server.connections.raw_http2 import frame, headers, raw_connection
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.service import PATIENCE_S, Service, serving, settings_for

in_module = pytest.mark.asyncio(loop_scope="module")

EMBED_PATH = "/embedgrpc.v1.EmbeddingService/Embed"
RERANK_PATH = "/embedgrpc.v1.RerankService/Rerank"
GET_MODEL_PATH = "/embedgrpc.v1.ModelService/GetModel"
CHECK_PATH = "/grpc.health.v1.Health/Check"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hashed(cache_dir: Path) -> AsyncIterator[Service]:
    """A server whose backend answers at once, for several tests."""
    settings = settings_for(cache_dir=cache_dir, health_interval_s=3600)
    async with serving(settings, HashBackend().open) as service:
        yield service


def _nested(depth: int) -> bytes:
    """Return nested unknown groups: each level is a start and an end."""
    return b"\x7b" * depth + b"\x7c" * depth


@in_module
@pytest.mark.parametrize("path", [EMBED_PATH, RERANK_PATH, GET_MODEL_PATH, CHECK_PATH])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x0a\x02\xff\xfe", id="string that is not UTF-8"),
        pytest.param(b"\x0a\x03\xed\xa0\x80", id="lone surrogate"),
        pytest.param(b"\x0a\x7f", id="length beyond the end"),
        pytest.param(b"\xff" * 11, id="endless varint"),
        pytest.param(b"\x07", id="wire type that does not exist"),
        pytest.param(_nested(200), id="nested too deep"),
    ],
)
async def test_a_message_that_cannot_be_parsed(plain: Service, path: str, data: bytes) -> None:
    """Malformed bytes are INVALID_ARGUMENT, and other calls are served."""
    failure = await failure_of(plain.client.send_bytes(path, data))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.reason, failure.label) == ("INVALID_REQUEST", "MALFORMED_MESSAGE")
    await plain.check_alive()


@in_module
async def test_unknown_fields_are_ignored(plain: Service) -> None:
    """A field of a later version of the contract does not matter to an earlier server."""
    known = embedding.EmbedRequest(texts=["a text"]).SerializeToString()
    later = known + b"\xa2\x06\x05later"
    expected = await plain.client.send_bytes(EMBED_PATH, known)
    assert await plain.client.send_bytes(EMBED_PATH, later) == expected


@in_module
async def test_malformed_bytes_end_a_stream(plain: Service) -> None:
    """A malformed message ends a stream with the same reason."""
    raw: Any = plain.client.channel.stream_stream("/embedgrpc.v1.EmbeddingService/StreamEmbed")

    async def answers() -> list[object]:
        return [answer async for answer in raw(iter([b"\x0a\x02\xff\xfe"]), timeout=PATIENCE_S)]

    failure = await failure_of(answers())
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.label == "MALFORMED_MESSAGE"
    await plain.check_alive()


async def test_a_message_over_the_limit(serve: Serve) -> None:
    """A message over the limit is refused because of its declared length."""
    service = await serve(max_request_bytes=100_000)
    failure = await failure_of(service.client.embed("a" * 100_001))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with raw_connection(service.address) as connection:
        answer = await connection.call(headers(EMBED_PATH.encode()), frame(b"", length=5_000_000))
        assert answer.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    await service.check_alive()


@in_module
async def test_a_compression_bomb(plain: Service) -> None:
    """Some kilobytes that would decompress to many times the limit are refused half-way."""
    bomb = gzip.compress(bytes(20_000_000), compresslevel=9)
    assert len(bomb) < 40_000
    async with raw_connection(plain.address) as connection:
        sent = b"\x01" + frame(bomb)[1:]
        parts = [sent[start : start + 16_000] for start in range(0, len(sent), 16_000)]
        answer = await connection.call(
            headers(EMBED_PATH.encode(), (b"grpc-encoding", b"gzip")), *parts
        )
        assert answer.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    await plain.check_alive()


@in_module
async def test_a_compressed_request_is_served(plain: Service) -> None:
    """A compressed request is answered like any other."""
    expected = await plain.client.embed("a text")
    request = embedding.EmbedRequest(texts=["a text"])
    compressed = await plain.client.embedding.Embed(request, compression=grpc.Compression.Gzip)
    assert compressed == expected


@in_module
@pytest.mark.parametrize(
    "path",
    [
        "/embedgrpc.v1.EmbeddingService/Nothing",
        "/embedgrpc.v1.Nothing/Embed",
        "/embedgrpc.v1.EmbeddingService/",
        "/" + "x" * 5000,
    ],
)
async def test_an_unknown_method(plain: Service, path: str) -> None:
    """A method that does not exist is UNIMPLEMENTED."""
    failure = await failure_of(plain.client.send_bytes(path, b""))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    await plain.check_alive()


async def test_a_response_that_the_client_would_not_accept(
    serve: Serve, backend: HashBackend
) -> None:
    """It is refused before the work is done; the error has its size and the limit."""
    service = await serve(backend=backend)
    before = len(backend.batches)
    request = embedding.EmbedRequest(texts=["a"] * 100)
    accepts = (("embedgrpc-max-response-bytes", "10000"),)
    failure = await failure_of(service.client.embedding.Embed(request, metadata=accepts))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.reason, failure.label) == ("INVALID_REQUEST", "RESPONSE_TOO_LARGE")
    assert int(failure.metadata["responseBytes"]) > 10_000
    assert failure.metadata["maxResponseBytes"] == "10000"
    assert len(backend.batches) == before

    ranking = rerank.RerankRequest(
        query="q",
        documents=["d" * 3000] * 4,
        options=rerank.RerankOptions(return_documents=True),
    )
    failure = await failure_of(service.client.rerank.Rerank(ranking, metadata=accepts))
    assert failure.label == "RESPONSE_TOO_LARGE"
    assert len(backend.batches) == before
    # It is not known yet which documents are returned: perhaps the largest.
    ranking.documents[:] = ["d", "d" * 12_000, "d"]
    ranking.options.top_n = 1
    failure = await failure_of(service.client.rerank.Rerank(ranking, metadata=accepts))
    assert failure.label == "RESPONSE_TOO_LARGE"
    assert len(backend.batches) == before
    ranking.documents[:] = ["d" * 3000] * 4
    assert len((await service.client.rerank.Rerank(ranking, metadata=accepts)).results) == 1
    await service.check_alive()


@in_module
async def test_the_estimate_of_a_response_is_an_upper_bound(plain: Service) -> None:
    """The vectors of a response never exceed the estimate of the size check."""
    for encoding in embedding.VectorEncoding.values():
        request = embedding.EmbedRequest(texts=["a", "b", "a text"])
        request.options.encoding = encoding  # type: ignore[assignment]  # a value of the enum
        answer = await plain.client.embedding.Embed(request)
        embeddings_bytes = sum(one.ByteSize() + 3 for one in answer.embeddings)
        refused = await failure_of(
            plain.client.embedding.Embed(request, metadata=(("embedgrpc-max-response-bytes", "1"),))
        )
        assert embeddings_bytes <= int(refused.metadata["responseBytes"])


@in_module
@pytest.mark.parametrize("value", ["", "-1", "1e6", "many", "9" * 12])
async def test_an_invalid_size(plain: Service, value: str) -> None:
    """An invalid size in the metadata is refused and named."""
    failure = await failure_of(
        plain.client.embedding.Embed(
            embedding.EmbedRequest(texts=["a"]),
            metadata=(("embedgrpc-max-response-bytes", value),),
        )
    )
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields == ("embedgrpc-max-response-bytes",)


@in_module
@pytest.mark.parametrize("documents", [1, 150])
@pytest.mark.parametrize("size", [1, 130, 3000])
@pytest.mark.parametrize("top_n", [0, 1])
async def test_no_ranking_exceeds_its_estimate(
    hashed: Service, documents: int, size: int, top_n: int
) -> None:
    """A ranking that exceeds the client's limit by a byte is refused before it is made."""
    request = rerank.RerankRequest(
        query="q",
        documents=[f"d{number:_>{size}}" for number in range(documents)],
        options=rerank.RerankOptions(return_documents=True, top_n=top_n),
    )
    whole = await hashed.client.rerank.Rerank(request)
    accepts = (("embedgrpc-max-response-bytes", str(whole.ByteSize() - 1)),)
    failure = await failure_of(hashed.client.rerank.Rerank(request, metadata=accepts))
    assert failure.label == "RESPONSE_TOO_LARGE"
    # The estimate is close: else rankings that fit would be refused.
    accepts = (("embedgrpc-max-response-bytes", str(whole.ByteSize() * 2 + 30 * documents + 512)),)
    assert await hashed.client.rerank.Rerank(request, metadata=accepts) == whole


@in_module
@pytest.mark.parametrize("texts", [1, 200])
async def test_no_response_exceeds_its_estimate(hashed: Service, texts: int) -> None:
    """Embeddings that exceed the client's limit by a byte are refused before they are made."""
    request = embedding.EmbedRequest(texts=[f"a {number}" for number in range(texts)])
    whole = await hashed.client.embedding.Embed(request)
    accepts = (("embedgrpc-max-response-bytes", str(whole.ByteSize() - 1)),)
    failure = await failure_of(hashed.client.embedding.Embed(request, metadata=accepts))
    assert failure.label == "RESPONSE_TOO_LARGE"
    accepts = (("embedgrpc-max-response-bytes", str(whole.ByteSize() * 2 + 512)),)
    assert await hashed.client.embedding.Embed(request, metadata=accepts) == whole
