"""Requests with as much needless work as the limits allow."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import grpc.aio

from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.attacks.attack import Attack

# The server's default limit, less the rest of the message.
_BYTES = 4 * 1024 * 1024 - 8192
_EMBED = "/embedgrpc.v1.EmbeddingService/Embed"
_RERANK = "/embedgrpc.v1.RerankService/Rerank"
_CALLER = "x-caller"
# The innocent caller, who says nothing, goes by its address.
_FLAGS = ("--caller-metadata", _CALLER)
_TIMEOUT_S = 30.0


async def _flood(
    target: str, seconds: float, make: Callable[[], Iterator[tuple[str, bytes]]], *, at_once: int
) -> str:
    """Keep that many calls open, and return their outcomes."""
    answers: Counter[str] = Counter()
    until = time.monotonic() + seconds
    requests = make()

    async def call_on(channel: grpc.aio.Channel) -> None:
        while time.monotonic() < until:
            method, data = next(requests)
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            try:
                await call(data, timeout=_TIMEOUT_S, metadata=((_CALLER, "attacker"),))
            except grpc.aio.AioRpcError as error:
                answers[error.code().name] += 1
            else:
                answers["OK"] += 1

    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        await asyncio.gather(*(call_on(channel) for _ in range(at_once)))
    return ", ".join(f"{count} {status}" for status, count in sorted(answers.items()))


def _the_same(method: str, data: bytes) -> Callable[[], Iterator[tuple[str, bytes]]]:
    def repeat() -> Iterator[tuple[str, bytes]]:
        while True:
            yield method, data

    return repeat


def _chinese() -> Iterator[tuple[str, bytes]]:
    """Return different texts that are cut to 256 tokens."""
    number = 0
    while True:
        number += 1
        text = f"{number} " + "\u4e2d\u56fd\u4eba\u6c11" * 16_000
        yield _EMBED, pb.EmbedRequest(texts=[text[:64_000]]).SerializeToString()


async def _invisible(target: str, seconds: float) -> str:
    text = "\u200b" * (_BYTES // 3)
    data = pb.EmbedRequest(texts=[text]).SerializeToString()
    return await _flood(target, seconds, _the_same(_EMBED, data), at_once=2)


async def _long_chinese(target: str, seconds: float) -> str:
    return await _flood(target, seconds, _chinese, at_once=16)


async def _many_documents(target: str, seconds: float) -> str:
    documents = [f"document {number} of many" for number in range(1024)]
    data = rerank.RerankRequest(query="q", documents=documents).SerializeToString()
    return await _flood(target, seconds, _the_same(_RERANK, data), at_once=8)


async def _empty_texts(target: str, seconds: float) -> str:
    return await _flood(target, seconds, _the_same(_EMBED, b"\x12\x00" * (_BYTES // 2)), at_once=2)


ATTACKS = (
    Attack(
        name="invisible-text",
        what="texts of 1.4 million zero-width spaces, 2 at once",
        run=_invisible,
        flags=_FLAGS,
    ),
    Attack(
        name="long-chinese",
        what="texts of 64,000 Chinese characters, 16 at once",
        run=_long_chinese,
        flags=_FLAGS,
    ),
    Attack(
        name="many-documents",
        what="Rerank of 1,024 documents, 8 at once, of which most are refused",
        run=_many_documents,
        flags=(*_FLAGS, "--max-queued-inputs", "1500"),
    ),
    Attack(
        name="empty-texts",
        what="messages of two million empty texts, 2 at once",
        run=_empty_texts,
        flags=_FLAGS,
    ),
)
