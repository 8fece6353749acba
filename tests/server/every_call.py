"""Every RPC as clients call it, valid and invalid, from its own process.

python -m tests.server.every_call TARGET

Reads lines of a name and a count, makes so many calls, one after the other, and answers "done".
"""

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from embedgrpc.tei.v1 import tei_pb2, tei_pb2_grpc
from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import model_service_pb2 as listing
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.server.kserve.requests import pairs_for, request_for
from tests.server.rankings import part, setup
from tests.server.service import PATIENCE_S, Client

Call = Callable[[Client], Awaitable[Any]]


def _embed(*, timeout: float = PATIENCE_S, **request: Any) -> Call:
    return lambda client: client.embedding.Embed(embedding.EmbedRequest(**request), timeout=timeout)


def _rerank(**request: Any) -> Call:
    return lambda client: client.rerank.Rerank(rerank.RerankRequest(**request), timeout=PATIENCE_S)


def _classify(**request: Any) -> Call:
    return lambda client: client.classify.Classify(
        classify.ClassifyRequest(**request), timeout=PATIENCE_S
    )


def _stream_embed(*messages: embedding.StreamEmbedRequest) -> Call:
    async def call(client: Client) -> None:
        stream = client.embedding.StreamEmbed(iter(messages), timeout=PATIENCE_S)
        _ = [one async for one in stream]

    return call


def _stream_classify(*messages: classify.StreamClassifyRequest) -> Call:
    async def call(client: Client) -> None:
        stream = client.classify.StreamClassify(iter(messages), timeout=PATIENCE_S)
        _ = [one async for one in stream]

    return call


def _stream_rerank(*messages: rerank.StreamRerankRequest) -> Call:
    async def call(client: Client) -> None:
        stream = client.rerank.StreamRerank(iter(messages), timeout=PATIENCE_S)
        _ = [one async for one in stream]

    return call


def _watch(service: str, *, end: bool) -> Call:
    async def call(client: Client) -> None:
        watch = client.health.Watch(health_pb2.HealthCheckRequest(service=service))
        await watch.read()
        if end:
            watch.cancel()
            await watch.code()

    return call


def _reflect(*requests: reflection_pb2.ServerReflectionRequest) -> Call:
    async def call(client: Client) -> None:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        stream = stub.ServerReflectionInfo(iter(requests), timeout=PATIENCE_S)
        _ = [one async for one in stream]

    return call


def _bytes(method: str, data: bytes) -> Call:
    return lambda client: client.send_bytes(method, data)


def _nothing(method: str) -> Call:
    """Half-close without a message."""

    async def call(client: Client) -> None:
        raw: Any = client.channel.stream_unary(method)
        await raw(iter(()), timeout=PATIENCE_S)

    return call


def _setup(**setup: Any) -> embedding.StreamEmbedRequest:
    return embedding.StreamEmbedRequest(setup=embedding.StreamEmbedSetup(**setup))


def _batch(*inputs: tuple[str, str]) -> embedding.StreamEmbedRequest:
    return embedding.StreamEmbedRequest(
        batch=embedding.StreamEmbedBatch(
            inputs=[embedding.StreamEmbedInput(id=key, text=text) for key, text in inputs]
        )
    )


def _labels(model: str = "cross") -> classify.StreamClassifyRequest:
    return classify.StreamClassifyRequest(setup=classify.StreamClassifySetup(model=model))


def _inputs(*inputs: str) -> classify.StreamClassifyRequest:
    made = [classify.StreamClassifyInput(id=str(key), text=text) for key, text in enumerate(inputs)]
    return classify.StreamClassifyRequest(batch=classify.StreamClassifyBatch(inputs=made))


def _cancelled(begin: Callable[[Client], Any]) -> Call:
    async def call(client: Client) -> None:
        begun = begin(client)
        await begun.wait_for_connection()
        # Some are cancelled before the server has begun, and some while it works.
        await asyncio.sleep(random.uniform(0, 0.005))  # noqa: S311 - no secret
        begun.cancel()
        await begun.code()

    return call


def _kserve(client: Client) -> Any:
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub
    return stub(client.channel)


def _infer(*texts: str, timeout: float = PATIENCE_S, **fields: Any) -> Call:
    return lambda client: _kserve(client).ModelInfer(request_for(*texts, **fields), timeout=timeout)


async def _stream_infer(client: Client) -> None:
    stream = _kserve(client).ModelStreamInfer(iter([request_for("a text")]), timeout=PATIENCE_S)
    _ = [one async for one in stream]


def _tei(service: str, method: str, *messages: Any, model: str = "embed") -> Call:
    """Make a call of tei.v1; several messages are those of a stream."""

    async def call(client: Client) -> None:
        stub: Any = getattr(tei_pb2_grpc, f"{service}Stub")(client.channel)
        asked: Any = iter(messages) if method.endswith("Stream") else messages[0]
        made = getattr(stub, method)(
            asked, metadata=(("embedgrpc-model", model),), timeout=PATIENCE_S
        )
        if method == "EmbedStream":
            _ = [one async for one in made]
        else:
            await made

    return call


_EMBED = "/embedgrpc.v1.EmbeddingService/Embed"
_TEXT = tei_pb2.EmbedRequest(inputs="a text")
_RANKED = tei_pb2.RerankStreamRequest(query="q", text="a text")
_RANKING = (setup("cross"), part("1", "q", ["a", "b"]))

CASES: dict[str, Call] = {
    "Embed": _embed(texts=["a"]),
    "Embed no model": _embed(texts=["a"], model="none"),
    "Embed no texts": _embed(),
    "Embed empty text": _embed(texts=[""]),
    "Embed partial": _embed(texts=["", "a"], allow_partial=True),
    "Embed malformed": _bytes(_EMBED, b"\xff\xff"),
    "Embed no message": _nothing(_EMBED),
    "Rerank": _rerank(query="q", documents=["a"], model="cross"),
    "Rerank partial": _rerank(query="q", documents=["a", ""], model="cross", allow_partial=True),
    "Rerank no documents": _rerank(query="q", model="cross"),
    "Rerank no query": _rerank(documents=["a"], model="cross"),
    "Classify": _classify(texts=["a"], model="cross"),
    "Classify pairs": _classify(
        pairs=[classify.TextPair(first="a", second="b")], model="cross", allow_partial=True
    ),
    "Classify no texts": _classify(model="cross"),
    "Classify no labels": _classify(texts=["a"]),
    "StreamEmbed": _stream_embed(_setup(), _batch(("1", "a"), ("2", "b"))),
    "StreamEmbed bad text": _stream_embed(_setup(), _batch(("1", ""), ("2", "b"))),
    "StreamEmbed no setup": _stream_embed(_batch(("1", "a"))),
    "StreamEmbed no model": _stream_embed(_setup(model="none"), _batch(("1", "a"))),
    "StreamEmbed id twice": _stream_embed(_setup(), _batch(("1", "a"), ("1", "b"))),
    "StreamClassify": _stream_classify(_labels(), _inputs("a", "b")),
    "StreamClassify bad text": _stream_classify(_labels(), _inputs("", "b")),
    "StreamClassify no setup": _stream_classify(_inputs("a")),
    "StreamClassify no labels": _stream_classify(_labels("embed"), _inputs("a")),
    "StreamClassify cancelled": _cancelled(
        lambda client: client.classify.StreamClassify(
            iter((_labels(), _inputs(*(str(number) for number in range(50)))))
        )
    ),
    "StreamRerank": _stream_rerank(*_RANKING),
    "StreamRerank bad": _stream_rerank(setup("cross"), part("1", "", ["a"])),
    "StreamRerank parts": _stream_rerank(
        setup("cross"), part("1", "q", ["a"], more=True), part("1", "", ["b"])
    ),
    "StreamRerank no last part": _stream_rerank(setup("cross"), part("1", "q", ["a"], more=True)),
    "StreamRerank no setup": _stream_rerank(part("1", "q", ["a"])),
    "StreamRerank id": _stream_rerank(setup("cross"), part("1" * 300, "q", ["a"])),
    "tei Info": _tei("Info", "Info", tei_pb2.InfoRequest()),
    "tei Embed": _tei("Embed", "Embed", _TEXT),
    "tei Embed no model": _tei("Embed", "Embed", _TEXT, model="none"),
    "tei Embed empty": _tei("Embed", "Embed", tei_pb2.EmbedRequest()),
    "tei EmbedStream": _tei("Embed", "EmbedStream", _TEXT, _TEXT),
    "tei EmbedStream bad": _tei("Embed", "EmbedStream", _TEXT, tei_pb2.EmbedRequest(), _TEXT),
    "tei EmbedStream cancelled": _cancelled(
        lambda client: getattr(tei_pb2_grpc, "EmbedStub")(client.channel).EmbedStream(  # noqa: B009 - untyped
            iter([_TEXT] * 50)
        )
    ),
    "tei Rerank": _tei(
        "Rerank", "Rerank", tei_pb2.RerankRequest(query="q", texts=["a"]), model="cross"
    ),
    "tei RerankStream": _tei("Rerank", "RerankStream", _RANKED, _RANKED, model="cross"),
    "tei RerankStream bad": _tei(
        "Rerank", "RerankStream", _RANKED, tei_pb2.RerankStreamRequest(), model="cross"
    ),
    "tei Predict no labels": _tei("Predict", "Predict", tei_pb2.PredictRequest(inputs="a")),
    "tei Tokenize": _tei("Tokenize", "Tokenize", tei_pb2.EncodeRequest(inputs="a text")),
    "tei Decode": _tei("Tokenize", "Decode", tei_pb2.DecodeRequest(ids=[5, 6])),
    "tei Decode bad": _tei("Tokenize", "Decode", tei_pb2.DecodeRequest(ids=[2**32 - 1])),
    "infer": _infer("a text", model_name="embed"),
    "infer typed": _infer("a text", raw=False),
    "infer no model": _infer("a text", model_name="none"),
    "infer no version": _infer("a text", model_version="2"),
    "infer empty text": _infer("a text", ""),
    "infer not embedding": _infer("a text", model_name="cross"),
    "infer pairs": lambda client: _kserve(client).ModelInfer(
        pairs_for("q", ["a text", "b"], model_name="cross"), timeout=PATIENCE_S
    ),
    "infer bad pairs": lambda client: _kserve(client).ModelInfer(
        pairs_for("q", ["a text", ""], model_name="cross"), timeout=PATIENCE_S
    ),
    "infer nothing": lambda client: _kserve(client).ModelInfer(service_pb2.ModelInferRequest()),
    "infer no UTF-8": _bytes(
        "/inference.GRPCInferenceService/ModelInfer",
        request_for(b"\xff").SerializeToString(),
    ),
    "infer cancelled": _cancelled(_infer(*map(str, range(50)))),
    "infer too late": _infer(*map(str, range(200)), timeout=0.004),
    "ServerReady": lambda client: _kserve(client).ServerReady(service_pb2.ServerReadyRequest()),
    "ModelReady none": lambda client: _kserve(client).ModelReady(
        service_pb2.ModelReadyRequest(name="none")
    ),
    "ModelConfig": lambda client: _kserve(client).ModelConfig(
        service_pb2.ModelConfigRequest(name="embed")
    ),
    "ModelStatistics": lambda client: _kserve(client).ModelStatistics(
        service_pb2.ModelStatisticsRequest()
    ),
    "TraceSetting": lambda client: _kserve(client).TraceSetting(service_pb2.TraceSettingRequest()),
    "ModelStreamInfer": _stream_infer,
    "ListModels": lambda client: client.models.ListModels(listing.ListModelsRequest()),
    "ListModels bad page": lambda client: client.models.ListModels(
        listing.ListModelsRequest(page_token="?")  # noqa: S106 - of a list
    ),
    "GetServer": lambda client: client.models.GetServer(listing.GetServerRequest()),
    "Tokenize": lambda client: client.tokenizer.Tokenize(
        tokenizer.TokenizeRequest(texts=["a text"])
    ),
    "CountTokens": lambda client: client.tokenizer.CountTokens(
        tokenizer.CountTokensRequest(texts=["a text"])
    ),
    "CountTokens no texts": lambda client: client.tokenizer.CountTokens(
        tokenizer.CountTokensRequest()
    ),
    "GetModel none": lambda client: client.models.GetModel(listing.GetModelRequest(model="none")),
    "GetModel long": lambda client: client.models.GetModel(
        listing.GetModelRequest(model="n" * 5000)
    ),
    "Check": lambda client: client.health.Check(health_pb2.HealthCheckRequest()),
    "Check none": lambda client: client.health.Check(health_pb2.HealthCheckRequest(service="?")),
    "Check no message": _nothing("/grpc.health.v1.Health/Check"),
    "Watch": _watch("", end=True),
    "Watch long": _watch("n" * 5000, end=False),
    "Tokenize no texts": lambda client: client.tokenizer.Tokenize(tokenizer.TokenizeRequest()),
    "Tokenize cancelled": _cancelled(
        lambda client: client.tokenizer.Tokenize(
            tokenizer.TokenizeRequest(texts=["some words " * 200] * 50), timeout=PATIENCE_S
        )
    ),
    "CountTokens too late": lambda client: client.tokenizer.CountTokens(
        tokenizer.CountTokensRequest(texts=["some words " * 2000] * 20), timeout=0.004
    ),
    "Embed cancelled": _cancelled(_embed(texts=[str(number) for number in range(50)])),
    "Embed too late": _embed(texts=[str(number) for number in range(200)], timeout=0.004),
    "Rerank cancelled": _cancelled(
        _rerank(query="q", documents=[str(number) for number in range(50)], model="cross")
    ),
    "StreamEmbed cancelled": _cancelled(
        lambda client: client.embedding.StreamEmbed(
            iter((_setup(), _batch(*((str(number), "text") for number in range(50)))))
        )
    ),
    "StreamRerank cancelled": _cancelled(lambda client: client.rerank.StreamRerank(iter(_RANKING))),
    "Reflect": _reflect(
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="none"),
    ),
    "Reflect long": _reflect(
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="n" * 5000),
    ),
}


async def _main(target: str) -> None:
    client = Client(target)
    async with client.channel:
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, _, count = line.rpartition(" ")
            for _ in range(int(count)):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await CASES[name](client)
            sys.stdout.write("done\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
