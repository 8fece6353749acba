"""Inputs that fail alone with `allow_partial`, and together without it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from embedgrpc.backends.base import BackendError, BackendUnreachableError
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.failures import failure_of
from tests.server.hash_backend import WIDTH, HashBackend, vector_of
from tests.server.rankings import part, setup
from tests.server.service import CROSS, EMBED, PATIENCE_S, Service, serving, settings_for, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# "a" is one token; two special ones are added.
NOT_A_NUMBER, FAILS = "a a a a a a a", "a a a a a"
BLANK, LONG = " \u200b", "a " * 200
MAX_INPUTS = 256
# What gRPC's core and other implementations accept in trailing metadata by default.
METADATA_BYTES_MAX = 8192
NO_CUT = common.TRUNCATION_NONE


def _answer(ids: IntArray) -> FloatArray:
    if len(ids) == len(NOT_A_NUMBER.split()) + 2:
        return np.full(WIDTH, np.nan, np.float32)
    if len(ids) == len(FAILS.split()) + 2:
        raise BackendError("no memory")
    return vector_of(ids)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server whose backend fails for some texts."""
    backend = HashBackend()
    backend.answer = _answer
    settings = settings_for(EMBED, cache_dir=cache_dir, max_inputs=MAX_INPUTS)
    async with serving(settings, backend.open) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ranking(cache_dir: Path) -> AsyncIterator[Service]:
    """A server with a cross-encoder, and a model that ranks by similarity."""
    async with serving(settings_for(EMBED, CROSS, cache_dir=cache_dir)) as started:
        yield started


def _reason(error: common.ItemError) -> str:
    return common.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")


TEXTS: dict[str, tuple[Sequence[str], dict[int, str]]] = {
    "one blank": (["a", BLANK, "b"], {1: "EMPTY_INPUT"}),
    "one too long": (["a", "b", LONG], {2: "INPUT_TOO_LONG"}),
    "one without numbers": (["a", NOT_A_NUMBER, "b"], {1: "NON_FINITE_OUTPUT"}),
    "one that the model fails for": (["a", "b", FAILS, "c"], {2: "BACKEND_FAILED"}),
    "of every kind": (
        [LONG, "a", BLANK, NOT_A_NUMBER, "b", FAILS, "a", ""],
        {
            0: "INPUT_TOO_LONG",
            2: "EMPTY_INPUT",
            3: "NON_FINITE_OUTPUT",
            5: "BACKEND_FAILED",
            7: "EMPTY_INPUT",
        },
    ),
    "all": ([BLANK, LONG, "", NOT_A_NUMBER, FAILS], dict(enumerate((
        "EMPTY_INPUT", "INPUT_TOO_LONG", "EMPTY_INPUT", "NON_FINITE_OUTPUT", "BACKEND_FAILED",
    )))),
    "all blank": ([BLANK] * 3, dict.fromkeys(range(3), "EMPTY_INPUT")),
    "none": (["a", "b"], {}),
}  # fmt: skip


@pytest.mark.parametrize("row", TEXTS.values(), ids=TEXTS)
async def test_texts_fail_alone(
    service: Service, row: tuple[Sequence[str], dict[int, str]]
) -> None:
    """Each text has its embedding or its error, in order; those that succeed are unaffected."""
    texts, reasons = row
    options = embedding.EmbedOptions(truncation=NO_CUT)
    response = await service.client.embed(*texts, allow_partial=True, options=options)
    failed = {
        index: _reason(one.error)
        for index, one in enumerate(response.embeddings)
        if one.HasField("error")
    }
    assert failed == reasons
    assert len(response.embeddings) == len(texts)
    good = [index for index in range(len(texts)) if index not in reasons]
    for index in reasons:
        one = response.embeddings[index]
        assert one == embedding.Embedding(error=one.error)
        code = {"EMPTY_INPUT": 3, "INPUT_TOO_LONG": 3}.get(failed[index], 13)
        assert one.error.code == code
        assert one.error.message
    if good:
        alone = await service.client.embed(*(texts[index] for index in good), options=options)
        assert list(alone.embeddings) == [response.embeddings[index] for index in good]
        assert response.usage == alone.usage
    else:
        assert not response.usage.input_tokens
    assert response.model == "embed"
    assert response.fingerprint


async def test_the_error_of_a_text_has_its_numbers(service: Service) -> None:
    """`ItemError.metadata` has what ErrorInfo of a call of its own would have."""
    options = embedding.EmbedOptions(truncation=NO_CUT, max_tokens=5)
    long = "a a a a a a"
    response = await service.client.embed("a", long, allow_partial=True, options=options)
    error = response.embeddings[1].error
    failure = await failure_of(service.client.embed(long, options=options))
    assert dict(error.metadata) == failure.metadata
    assert failure.metadata == {"label": "TOKENS", "tokens": "8", "maxTokens": "5"}
    assert not error.HasField("retry_delay")


@pytest.mark.parametrize("blanks", [1, 2, 100, 101, MAX_INPUTS])
async def test_every_bad_text_is_named(service: Service, blanks: int) -> None:
    """Without `allow_partial`, the call fails and names up to 100 texts in small metadata."""
    texts = (
        ["a"] * (MAX_INPUTS - blanks) + [BLANK] * (blanks // 2) + [LONG] * (blanks - blanks // 2)
    )
    options = embedding.EmbedOptions(truncation=NO_CUT)
    failure = await failure_of(service.client.embed(*texts, options=options))
    first = MAX_INPUTS - blanks
    named = [f"texts[{index}]" for index in range(first, MAX_INPUTS)][:100]
    assert list(failure.fields) == named
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == ("INPUT_TOO_LONG" if blanks == 1 else "EMPTY_INPUT")
    assert failure.metadata.get("failedInputs") == (str(min(blanks, 100)) if blanks > 1 else None)
    assert len(failure.trailing) < METADATA_BYTES_MAX * 2  # It is printed with escapes.


async def test_the_metadata_of_a_hundred_errors_is_small(service: Service) -> None:
    """It fits into what clients accept, with a request id as well."""
    begun = service.client.embedding.Embed(
        embedding.EmbedRequest(texts=[BLANK] * MAX_INPUTS), metadata=[("x-request-id", "i" * 128)]
    )
    assert await begun.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailing = await begun.trailing_metadata()
    # HTTP/2 counts 32 bytes more for each; binary values travel in Base64.
    size = sum(len(key) + len(value) * 4 / 3 + 32 for key, value in trailing)
    assert size < METADATA_BYTES_MAX


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no texts": ({"texts": []}, "INVALID_REQUEST"),
    "too many texts": ({"texts": ["a"] * (MAX_INPUTS + 1)}, "INVALID_REQUEST"),
    "unknown model": ({"texts": [BLANK], "model": "none"}, "MODEL_NOT_FOUND"),
    "bad option": (
        {"texts": ["a"], "options": embedding.EmbedOptions(dimensions=-1)}, "INVALID_REQUEST",
    ),
    "large response": ({"texts": ["a"] * 9, "max_response_bytes": 600}, "INVALID_REQUEST"),
}  # fmt: skip


@pytest.mark.parametrize("row", REQUESTS.values(), ids=REQUESTS)
async def test_other_failures_fail_the_call(
    service: Service, row: tuple[dict[str, Any], str]
) -> None:
    """A failure that is not of an input fails the call, with `allow_partial` or without."""
    fields, reason = row
    for partial in (False, True):
        request = embedding.EmbedRequest(allow_partial=partial, **fields)
        failure = await failure_of(service.client.embedding.Embed(request))
        assert failure.reason == reason


async def test_an_unreachable_backend(cache_dir: Path) -> None:
    """No text is at fault when the backend is away: the call, or each item, can be retried."""
    backend = HashBackend()
    async with serving(settings_for(EMBED, cache_dir=cache_dir), backend.open) as started:

        def refuse(_: IntArray) -> FloatArray:
            raise BackendUnreachableError("unplugged")

        backend.answer = refuse
        failure = await failure_of(started.client.embed("a", "b"))
        assert failure.reason == "BACKEND_UNAVAILABLE"
        request = embedding.EmbedRequest(texts=["a", BLANK], allow_partial=True)
        failure = await failure_of(started.client.embedding.Embed(request))
        assert failure.reason == "BACKEND_UNAVAILABLE"
        backend.answer = vector_of


async def test_partial_responses_are_bounded(service: Service) -> None:
    """Errors count against the limit of a response before any work."""
    texts = [BLANK] * 32
    whole = await service.client.embed(*texts, allow_partial=True)
    failure = await failure_of(
        service.client.embed(*texts, allow_partial=True, max_response_bytes=whole.ByteSize() - 1)
    )
    assert (failure.reason, failure.label) == ("INVALID_REQUEST", "RESPONSE_TOO_LARGE")


@pytest.mark.parametrize("model", ["cross", "embed"])
async def test_documents_fail_alone(ranking: Service, model: str) -> None:
    """The others are ranked as without them; failures are by index."""
    documents = ["one", BLANK, "two words", LONG, "three", ""]
    options = rerank.RerankOptions(truncation=NO_CUT, return_documents=True)
    request = rerank.RerankRequest(
        model=model, query="a query", documents=documents, options=options, allow_partial=True
    )
    response = await ranking.client.rerank.Rerank(request, timeout=PATIENCE_S)
    assert {one.index: _reason(one.error) for one in response.failures} == {
        1: "EMPTY_INPUT",
        3: "INPUT_TOO_LONG",
        5: "EMPTY_INPUT",
    }
    assert [one.index for one in response.failures] == [1, 3, 5]
    assert sorted(one.index for one in response.results) == [0, 2, 4]
    assert all(one.document == documents[one.index] for one in response.results)
    good = rerank.RerankRequest(
        model=model, query="a query", documents=["one", "two words", "three"], options=options
    )
    alone = await ranking.client.rerank.Rerank(good, timeout=PATIENCE_S)
    assert [(one.document, one.score) for one in alone.results] == [
        (one.document, one.score) for one in response.results
    ]
    assert response.usage == alone.usage

    request.allow_partial = False
    failure = await failure_of(ranking.client.rerank.Rerank(request))
    assert failure.fields == ("documents[1]", "documents[3]", "documents[5]")
    assert failure.metadata["failedInputs"] == "3"


@pytest.mark.parametrize("model", ["cross", "embed"])
@pytest.mark.parametrize("partial", [False, True])
async def test_a_bad_query_fails_the_call(ranking: Service, model: str, *, partial: bool) -> None:
    """No document is to blame for it."""
    request = rerank.RerankRequest(
        model=model, query=BLANK, documents=["a", BLANK], allow_partial=partial
    )
    failure = await failure_of(ranking.client.rerank.Rerank(request))
    assert failure.reason == "EMPTY_INPUT"
    assert failure.fields[0] == "query"


@pytest.mark.parametrize("model", ["cross", "embed"])
async def test_all_documents_may_fail(ranking: Service, model: str) -> None:
    """The response then has failures alone."""
    request = rerank.RerankRequest(
        model=model, query="q", documents=[BLANK, ""], allow_partial=True
    )
    response = await ranking.client.rerank.Rerank(request, timeout=PATIENCE_S)
    assert not response.results
    assert [one.index for one in response.failures] == [0, 1]


@pytest.mark.parametrize("partial", [False, True])
async def test_a_rerank_stream_may_be_partial(ranking: Service, *, partial: bool) -> None:
    """With it a query has a ranking and failures, without it an error."""
    messages = [
        setup("cross", partial=partial),
        part("mixed", "q", ["a", BLANK]),
        part("good", "q", ["a", "b"]),
        part("bad query", BLANK, ["a"]),
    ]
    stream = ranking.client.rerank.StreamRerank(iter(messages), timeout=PATIENCE_S)
    _, *answers = [one async for one in stream]
    results = {one.result.id: one.result for one in answers}
    assert not results["good"].ranking.failures
    assert len(results["good"].ranking.results) == 2
    assert _reason(results["bad query"].error) == "EMPTY_INPUT"
    if partial:
        mixed = results["mixed"].ranking
        assert [one.index for one in mixed.results] == [0]
        assert [one.index for one in mixed.failures] == [1]
    else:
        assert _reason(results["mixed"].error) == "EMPTY_INPUT"


async def test_an_item_says_when_to_retry(cache_dir: Path) -> None:
    """An input of a stream that is refused has the delay that a call would have."""
    backend = HashBackend()
    settings = settings_for(EMBED, cache_dir=cache_dir, max_queued_inputs=1)
    async with serving(settings, backend.open) as started:
        backend.hold()
        first = asyncio.ensure_future(started.client.embed("first"))
        await until(lambda: started.admission().inputs == 1)
        try:
            messages = [
                setup(priority=common.PRIORITY_INTERACTIVE),
                part("1", "q", ["a", "b", "c"]),
            ]
            stream = started.client.rerank.StreamRerank(iter(messages), timeout=PATIENCE_S)
            assert (await stream.read()).WhichOneof("step") == "ready"
            result = (await stream.read()).result
        finally:
            backend.release()
        await first
    assert _reason(result.error) == "OVERLOADED"
    assert result.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert result.error.retry_delay.ToTimedelta().total_seconds() > 0
    assert result.error.metadata["label"] == "QUEUE_FULL"
