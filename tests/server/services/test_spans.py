from pathlib import Path

import pytest

from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.rankings import part, setup
from tests.server.service import EMBED, serving, settings_for
from tests.server.span_receiver import read_spans, receiving_spans
from tests.server.streams import Stream

# Two words and two special tokens.
TEXT, TOKENS = "a a", 4


async def test_spans_describe_their_calls(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The span of each RPC has the operation, both names of the model, and the tokens."""
    model = EMBED.model_copy(update={"aliases": ("also",)})
    settings = settings_for(model, cache_dir=cache_dir, health_interval_s=3600)
    options = pb.EmbedOptions(dimensions=8, encoding=pb.VECTOR_ENCODING_INT8)
    ranking = rerank.RerankRequest(model="also", query=TEXT, documents=[TEXT])
    async with receiving_spans(monkeypatch) as exports:
        async with serving(settings) as service:
            await service.client.embed(TEXT, model="also", options=options)
            stream = await Stream.open(service.client, model="also", options=options)
            await stream.send(("1", TEXT), ("2", TEXT))
            assert len(await stream.end()) == 2
            await service.client.rerank.Rerank(ranking)
            requests = iter([setup("also"), *(part(one, TEXT, [TEXT]) for one in "ab")])
            assert len([one async for one in service.client.rerank.StreamRerank(requests)]) == 3
        spans = read_spans(exports)
    expected = {
        "EmbeddingService/Embed": ("embeddings", TOKENS),
        "EmbeddingService/StreamEmbed": ("embeddings", 2 * TOKENS),
        "RerankService/Rerank": ("rerank", 2 * TOKENS),
        "RerankService/StreamRerank": ("rerank", 4 * TOKENS),
    }
    for name, (operation, tokens) in expected.items():
        span = spans[f"embedgrpc.v1.{name}"]
        assert span["gen_ai.operation.name"] == operation
        assert span["gen_ai.request.model"] == "also"
        assert span["gen_ai.response.model"] == "embed"
        assert span["gen_ai.usage.input_tokens"] == tokens
        if operation == "embeddings":
            assert span["gen_ai.embeddings.dimension.count"] == 8
            assert span["gen_ai.request.encoding_formats"] == "int8"
