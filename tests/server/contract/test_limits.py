"""Limits that clients are told are those of the settings, and hold at exactly their value."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from embedgrpc.v1 import classify_service_pb2 as classify
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.server.failures import Failure, failure_of
from tests.server.rankings import part, setup
from tests.server.service import CROSS, EMBED, PATIENCE_S, Client, Service, serving, settings_for
from tests.server.streams import Stream, batch

pytestmark = pytest.mark.asyncio(loop_scope="module")

VALUES = {
    "max_request_bytes": 60_000,
    "max_response_bytes": 50_000,
    "max_inputs": 5,
    "max_stream_batch_inputs": 3,
    "max_stream_in_flight_inputs": 7,
    "max_unary_s": 33.5,
}
NO_CUT = common.TRUNCATION_NONE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with small limits."""
    async with serving(settings_for(EMBED, CROSS, cache_dir=cache_dir, **VALUES)) as started:
        yield started


async def _limits(client: Client) -> dict[str, common.Limits]:
    found = {}
    request = models.GetServerRequest()
    found["GetServer"] = (await client.models.GetServer(request)).server.limits
    listed = (await client.models.ListModels(models.ListModelsRequest())).models
    found |= {f"ListModels {one.id}": one.limits for one in listed}
    one = (await client.models.GetModel(models.GetModelRequest(model="embed"))).model
    found["GetModel"] = one.limits
    stream = Stream(client)
    await stream.set_up()
    found["StreamEmbed"] = (await stream.call.read()).ready.limits
    await stream.end()
    ranking = client.rerank.StreamRerank(iter([setup("cross")]), timeout=PATIENCE_S)
    found["StreamRerank"] = (await ranking.read()).ready.limits
    setting = classify.StreamClassifyRequest(setup=classify.StreamClassifySetup(model="cross"))
    labels = client.classify.StreamClassify(iter([setting]), timeout=PATIENCE_S)
    found["StreamClassify"] = (await labels.read()).ready.limits
    return found


async def test_limits_are_those_of_the_settings(service: Service) -> None:
    """Models, streams and the server state the same; only the characters depend on the model."""
    found = await _limits(service.client)
    characters = {place: limits.max_text_characters for place, limits in found.items()}
    assert characters.pop("GetServer") == 0
    assert set(characters.values()) == {24_000}
    for place, limits in found.items():
        assert limits.max_request_bytes == VALUES["max_request_bytes"], place
        assert limits.max_response_bytes == VALUES["max_response_bytes"]
        assert limits.max_inputs == VALUES["max_inputs"]
        assert limits.max_prompt_characters == 8192
        assert limits.max_name_characters == 128
        assert limits.max_id_characters == 256
        assert limits.max_stream_message_inputs == VALUES["max_stream_batch_inputs"]
        assert limits.max_stream_in_flight_inputs == VALUES["max_stream_in_flight_inputs"]
        assert limits.max_unary_duration.ToMilliseconds() == 33_500


async def test_streams_state_their_terms(service: Service) -> None:
    """The ready messages bound messages, queries and what is in flight."""
    stream = Stream(service.client)
    await stream.set_up()
    ready = (await stream.call.read()).ready
    assert (ready.max_in_flight_inputs, ready.max_batch_inputs) == (7, 3)
    await stream.end()
    ranking = service.client.rerank.StreamRerank(iter([setup()]), timeout=PATIENCE_S)
    terms = (await ranking.read()).ready
    sizes = (terms.max_in_flight_inputs, terms.max_part_inputs, terms.max_query_inputs)
    assert sizes == (7, 3, 5)


Try = Callable[[Client, int], Awaitable[Any]]


def _embed(**changes: Callable[[int], Any]) -> Try:
    async def attempt(client: Client, size: int) -> Any:
        fields = {"texts": ["a"], **{name: make(size) for name, make in changes.items()}}
        return await client.embedding.Embed(embedding.EmbedRequest(**fields), timeout=PATIENCE_S)

    return attempt


def _rerank(**changes: Callable[[int], Any]) -> Try:
    async def attempt(client: Client, size: int) -> Any:
        fields: dict[str, Any] = {"query": "q", "documents": ["a"]}
        fields |= {name: make(size) for name, make in changes.items()}
        return await client.rerank.Rerank(rerank.RerankRequest(**fields), timeout=PATIENCE_S)

    return attempt


def _tokenize(**changes: Callable[[int], Any]) -> Try:
    async def attempt(client: Client, size: int) -> Any:
        fields = {"texts": ["a"], **{name: make(size) for name, make in changes.items()}}
        await client.tokenizer.CountTokens(tokenizer.CountTokensRequest(**fields))
        return await client.tokenizer.Tokenize(tokenizer.TokenizeRequest(**fields))

    return attempt


def _stream(make: Callable[[int], list[tuple[str, str]]]) -> Try:
    async def attempt(client: Client, size: int) -> Any:
        first = embedding.StreamEmbedRequest(setup=embedding.StreamEmbedSetup())
        stream = client.embedding.StreamEmbed(iter([first, batch(make(size))]), timeout=PATIENCE_S)
        return [one async for one in stream]

    return attempt


def _rankings(make: Callable[[int], list[rerank.StreamRerankRequest]]) -> Try:
    async def attempt(client: Client, size: int) -> Any:
        stream = client.rerank.StreamRerank(iter([setup(), *make(size)]), timeout=PATIENCE_S)
        return [one async for one in stream]

    return attempt


# The limit, how to come up to a size, and the field that is to blame beyond it.
CASES: dict[str, tuple[int, Try, str]] = {
    "texts": (5, _embed(texts=lambda size: ["a"] * size), "texts"),
    "documents": (5, _rerank(documents=lambda size: ["a"] * size), "documents"),
    "texts to tokenize": (5, _tokenize(texts=lambda size: ["a"] * size), "texts"),
    "characters of a text": (
        24_000,
        _embed(
            # One unknown word: blanks in a row would count as one.
            texts=lambda size: ["a" * size],
            options=lambda _: embedding.EmbedOptions(truncation=NO_CUT),
        ),
        "texts[0]",
    ),
    "prompt": (
        8192,
        _embed(options=lambda size: embedding.EmbedOptions(prompt_text="p" * size)),
        "options.prompt_text",
    ),
    "prompt of a query": (
        8192,
        _rerank(options=lambda size: rerank.RerankOptions(query_prompt_text="p" * size)),
        "options.query_prompt_text",
    ),
    "prompt of documents": (
        8192,
        _rerank(options=lambda size: rerank.RerankOptions(document_prompt_text="p" * size)),
        "options.document_prompt_text",
    ),
    "prompt to tokenize": (
        8192,
        _tokenize(options=lambda size: tokenizer.TokenizeOptions(prompt_text="p" * size)),
        "options.prompt_text",
    ),
    "id of a text": (256, _stream(lambda size: [("i" * size, "a")]), "batch.inputs[0].id"),
    "texts of a message": (
        3, _stream(lambda size: [(str(one), "a") for one in range(size)]), "batch.inputs",
    ),
    "id of a query": (256, _rankings(lambda size: [part("i" * size, "q", ["a"])]), "part.id"),
    "documents of a part": (
        3, _rankings(lambda size: [part("1", "q", ["a"] * size)]), "part.documents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_limit_is_exact(service: Service, case: tuple[int, Try, str]) -> None:
    """As much as the limit is accepted; one more is INVALID_ARGUMENT and names the field."""
    limit, attempt, field = case
    assert await attempt(service.client, limit)
    failure = await failure_of(attempt(service.client, limit + 1))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason in ("INVALID_REQUEST", "INPUT_TOO_LONG")
    assert failure.fields == (field,)
    assert str(limit) in failure.details


@pytest.mark.parametrize(
    ("attempt", "field", "reason"),
    [
        (_embed(model=lambda size: "m" * size), "model", "MODEL_NOT_FOUND"),
        (_rerank(model=lambda size: "m" * size), "model", "MODEL_NOT_FOUND"),
        (_tokenize(model=lambda size: "m" * size), "model", "MODEL_NOT_FOUND"),
        (
            _embed(options=lambda size: embedding.EmbedOptions(prompt_name="p" * size)),
            "options.prompt_name",
            "UNSUPPORTED",
        ),
        (
            _rerank(options=lambda size: rerank.RerankOptions(query_prompt_name="p" * size)),
            "options.query_prompt_name",
            "UNSUPPORTED",
        ),
        (
            _rerank(options=lambda size: rerank.RerankOptions(document_prompt_name="p" * size)),
            "options.document_prompt_name",
            "UNSUPPORTED",
        ),
        (
            _rerank(options=lambda size: rerank.RerankOptions(instruction="p" * size)),
            "options.instruction",
            "UNSUPPORTED",
        ),
    ],
)
async def test_a_name_is_looked_up_only_within_its_limit(
    service: Service, attempt: Try, field: str, reason: str
) -> None:
    """A name of the largest length may be unknown; a longer one is no name."""
    limit = 8192 if field.endswith("instruction") else 128
    failure = await failure_of(attempt(service.client, limit))
    assert (failure.reason, failure.fields) == (reason, (field,))
    failure = await failure_of(attempt(service.client, limit + 1))
    assert (failure.reason, failure.fields) == ("INVALID_REQUEST", (field,))


async def test_a_query_of_a_stream_has_a_limit(service: Service) -> None:
    """Beyond it, over all its parts, the query fails alone."""
    messages = [
        part("fits", "q", ["a"] * 3, more=True), part("fits", "", ["a"] * 2),
        part("long", "q", ["a"] * 3, more=True), part("long", "", ["a"] * 3),
    ]  # fmt: skip
    stream = service.client.rerank.StreamRerank(iter([setup(), *messages]), timeout=PATIENCE_S)
    _, *answers = [one async for one in stream]
    results = {one.result.id: one.result for one in answers}
    assert len(results["fits"].ranking.results) == 5
    error = results["long"].error
    assert error.reason == common.ERROR_REASON_INVALID_REQUEST
    assert dict(error.metadata) == {"label": "TOO_MANY_INPUTS", "limit": "5"}


def _embed_request_of(size: int) -> bytes:
    empty = embedding.EmbedRequest(texts=["a" * 50_000]).ByteSize() - 50_000
    data = embedding.EmbedRequest(texts=["a" * (size - empty)]).SerializeToString()
    assert len(data) == size
    return data


async def test_a_request_has_a_limit_of_bytes(service: Service) -> None:
    """GRPC's core refuses a larger one, without ErrorInfo, as the contract says."""
    method = "/embedgrpc.v1.EmbeddingService/Embed"
    assert await service.client.send_bytes(method, _embed_request_of(60_000))
    failure = await failure_of(service.client.send_bytes(method, _embed_request_of(60_001)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")


async def test_requests_of_names_are_small(service: Service) -> None:
    """A message of a method that takes only names has at most 4 KiB."""
    unknown = b"\xa2\x06"

    def message(size: int) -> bytes:
        filler = b"n" * (size - 4)
        data = unknown + bytes([len(filler) & 0x7F | 0x80, len(filler) >> 7]) + filler
        assert len(data) == size
        return data

    method = "/embedgrpc.v1.ModelService/GetServer"
    assert await service.client.send_bytes(method, message(4096))
    failure = await failure_of(service.client.send_bytes(method, message(4097)))
    assert (failure.reason, failure.label) == ("INVALID_REQUEST", "MESSAGE_TOO_LARGE")
    assert failure.metadata == {"label": "MESSAGE_TOO_LARGE", "bytes": "4097", "limit": "4096"}


Ask = Callable[[Client, int, int | None], Awaitable[Any]]


def _metadata(size: int | None) -> list[tuple[str, str]]:
    return [] if size is None else [("embedgrpc-max-response-bytes", str(size))]


async def _ask_embed(client: Client, size: int, alias: int | None) -> Any:
    request = embedding.EmbedRequest(texts=["a"] * 5, max_response_bytes=size)
    return await client.embedding.Embed(request, metadata=_metadata(alias), timeout=PATIENCE_S)


async def _ask_rerank(client: Client, size: int, alias: int | None) -> Any:
    options = rerank.RerankOptions(return_documents=True)
    request = rerank.RerankRequest(
        query="q", documents=["a" * 500] * 5, options=options, max_response_bytes=size
    )
    return await client.rerank.Rerank(request, metadata=_metadata(alias), timeout=PATIENCE_S)


async def _ask_tokenize(client: Client, size: int, alias: int | None) -> Any:
    request = tokenizer.TokenizeRequest(texts=["a " * 100], max_response_bytes=size)
    return await client.tokenizer.Tokenize(request, metadata=_metadata(alias), timeout=PATIENCE_S)


@pytest.mark.parametrize("ask", [_ask_embed, _ask_rerank, _ask_tokenize])
async def test_the_field_wins_over_the_metadata(service: Service, ask: Ask) -> None:
    """The largest response is a field of the request; the metadata key is its alias."""
    ample = 40_000
    for size, alias in ((0, None), (ample, None), (0, ample), (ample, 700)):
        assert await ask(service.client, size, alias)
    for size, alias, limit in ((700, None, 700), (0, 700, 700), (700, ample, 700)):
        failure = await failure_of(ask(service.client, size, alias))
        assert (failure.reason, failure.label) == ("INVALID_REQUEST", "RESPONSE_TOO_LARGE")
        assert failure.metadata["maxResponseBytes"] == str(limit)
    failure = await failure_of(ask(service.client, -1, None))
    assert (failure.reason, failure.fields) == ("INVALID_REQUEST", ("max_response_bytes",))


async def test_no_client_gets_more_than_the_server_sends(service: Service) -> None:
    """The server's own limit holds however much a client accepts."""
    request = tokenizer.TokenizeRequest(texts=["a " * 4000], max_response_bytes=1 << 40)
    failure = await failure_of(service.client.tokenizer.Tokenize(request, timeout=PATIENCE_S))
    assert failure.metadata["maxResponseBytes"] == str(VALUES["max_response_bytes"])


async def _first_error(client: Client, size: int, alias: int | None) -> common.ItemError | None:
    first = embedding.StreamEmbedRequest(setup=embedding.StreamEmbedSetup(max_response_bytes=size))
    stream = client.embedding.StreamEmbed(
        iter([first, batch([("1", "a")])]), metadata=_metadata(alias), timeout=PATIENCE_S
    )
    _, answer = [one async for one in stream]
    (result,) = answer.results.results
    return result.error if result.WhichOneof("outcome") == "error" else None


async def _first_rank_error(client: Client, size: int, alias: int | None) -> Any:
    first = setup(return_documents=True)
    first.setup.max_response_bytes = size
    stream = client.rerank.StreamRerank(
        iter([first, part("1", "q", ["a" * 500] * 2)]),
        metadata=_metadata(alias),
        timeout=PATIENCE_S,
    )
    _, answer = [one async for one in stream]
    return answer.result.error if answer.result.WhichOneof("outcome") == "error" else None


@pytest.mark.parametrize("ask", [_first_error, _first_rank_error])
async def test_the_limit_of_a_stream_is_that_of_one_result(service: Service, ask: Ask) -> None:
    """A result that is too large fails alone; the field of the setup wins over the metadata."""
    for size, alias in ((0, None), (40_000, 150), (0, 40_000)):
        assert await ask(service.client, size, alias) is None
    for size, alias in ((150, None), (0, 150), (150, 40_000)):
        error = await ask(service.client, size, alias)
        assert error.reason == common.ERROR_REASON_INVALID_REQUEST
        assert error.metadata["label"] == "RESPONSE_TOO_LARGE"
    failure: Failure = await failure_of(ask(service.client, -1, None))
    assert failure.fields == ("setup.max_response_bytes",)
