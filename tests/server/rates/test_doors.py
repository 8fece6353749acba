"""The limits of callers on a real server, at each of its doors."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from embedgrpc.client import AsyncClient
from embedgrpc.server.rates.limits import RateLimits
from embedgrpc.server.rates.rates import Rates
from embedgrpc.server.rates.refusals import Limit
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import model_service_pb2, tokenizer_service_pb2
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient, Reply
from tests.server.kserve.requests import KServe, request_for
from tests.server.rates.clock import Clock
from tests.server.service import PATIENCE_S, Service, serving, settings_for, until
from tests.server.streams import Stream
from tests.server.tei.conftest import Tei

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "some words of a text"
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
EMBED_METHOD = "/embedgrpc.v1.EmbeddingService/Embed"


class Limited:
    """A server with limits, whose clock for them stands still.

    Args:
        service: The server; its own limits are replaced.
        backend: What runs its model.
        limits: The limits.

    Attributes:
        service: The server.
        backend: See above.
        clock: The clock.
        http: A client of its HTTP port.
        tei: A client of tei.v1.
    """

    def __init__(self, service: Service, backend: HashBackend, limits: RateLimits) -> None:
        self.service = service
        self.backend = backend
        self.clock = Clock()
        self.http = HttpClient(service)
        self.tei = Tei(service)
        self.rates = Rates(limits, clock=self.clock, sleep=self.clock.sleep)
        service.server.open_calls.rates = self.rates

    @property
    def open_calls(self) -> int:
        """How many calls are open."""
        return len(self.service.server.open_calls)

    def refusals(self, limit: Limit) -> int:
        """Return how many calls exceeded a limit."""
        return self.rates._totals.refusals[limit]

    def tokens_left(self) -> int:
        """Return the tokens that the only caller has left."""
        (account,) = self.rates._others._known.values()
        return int(dict(account.figures())["x-ratelimit-remaining-tokens"])

    async def count_tokens(self, text: str) -> int:
        """Return the tokens that the model reads of a text."""
        answer = await self.service.client.tokenizer.CountTokens(
            tokenizer_service_pb2.CountTokensRequest(texts=[text])
        )
        return int(answer.total_tokens)


Start = Callable[..., Limited]


@pytest.fixture(scope="module")
def shared_backend() -> HashBackend:
    """What runs the model of the server."""
    return HashBackend()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path, shared_backend: HashBackend) -> AsyncIterator[Service]:
    """A server with all doors."""
    settings = settings_for(
        cache_dir=cache_dir,
        http_address="127.0.0.1:0",
        tei_model="embed",
        kserve=True,
        caller_metadata="x-caller",
    )
    async with serving(settings, shared_backend.open) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def start(service: Service, shared_backend: HashBackend) -> AsyncIterator[Start]:
    """Give the server limits."""

    def limited(**limits: Any) -> Limited:
        return Limited(service, shared_backend, RateLimits(**limits))

    yield limited
    shared_backend.release()
    await until(lambda: not len(service.server.open_calls))


async def _send(limited: Limited, door: str, text: str = TEXT) -> Any:
    """Send a request; return the answer, or raise gRPC's error."""
    match door:
        case "grpc":
            return await limited.service.client.embed(text)
        case "tei.v1":
            return await limited.tei.embed.Embed(tei_pb2.EmbedRequest(inputs=text))
        case "kserve":
            return await KServe(limited.service).infer(request_for(text))
        case path:
            return await limited.http.post(path, {"input": text, "inputs": text})


HTTP_DOORS = ("/v1/embeddings", "/embed")
DOORS = ("grpc", "tei.v1", "kserve", *HTTP_DOORS)


@pytest.mark.parametrize("door", DOORS)
async def test_a_request_beyond_the_limit_is_refused_until_the_stated_time(
    start: Start, door: str
) -> None:
    """Every door answers with the limit, and accepts a request when it said it would."""
    limited = start(requests_per_s=4, request_burst=2)
    for _ in range(2):
        assert not isinstance(reply := await _send(limited, door), Reply) or reply.status == 200
    if door in HTTP_DOORS:
        refused = await _send(limited, door)
        assert refused.status == 429
        assert b"too many requests: the limit is 4 per second, 2 at once" in refused.body
        wait_s = int(refused.headers["retry-after-ms"]) / 1000
        assert refused.headers["retry-after"] == "1"
    else:
        failure = await failure_of(_send(limited, door))
        assert (failure.code, failure.reason) == (RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert failure.metadata == {
            "label": "REQUESTS_PER_SECOND",
            "caller": "ipv4:127.0.0.1",
            "limit": "4",
            "burst": "2",
        }
        wait_s = int(failure.pushback_ms) / 1000
        assert failure.retry_delay_s == wait_s
    assert 0.25 <= wait_s <= 0.3
    limited.clock.now += wait_s
    assert not isinstance(reply := await _send(limited, door), Reply) or reply.status == 200
    assert limited.refusals(Limit.REQUESTS) == 1


async def test_the_doors_share_the_limits(start: Start) -> None:
    """What a caller sends to one door counts at all of them."""
    limited = start(requests_per_s=1, request_burst=4)
    for door in DOORS:
        await _send(limited, door)
    assert (await failure_of(_send(limited, "grpc"))).reason == "RATE_LIMITED"
    assert (await failure_of(_send(limited, "tei.v1"))).reason == "RATE_LIMITED"
    for door in HTTP_DOORS:
        assert (await _send(limited, door)).status == 429


async def test_openai_says_that_it_is_a_rate_limit(start: Start) -> None:
    """The error has OpenAI's type, and the headers that its clients read."""
    limited = start(requests_per_s=10, request_burst=1, tokens_per_min=6000)
    answer = await _send(limited, "/v1/embeddings")
    used = answer.json["usage"]["total_tokens"]
    assert _limits(answer.headers) == {
        "limit-requests": "1",
        "remaining-requests": "0",
        "reset-requests": "100ms",
        "limit-tokens": "6000",
        "remaining-tokens": str(6000 - used),
        "reset-tokens": f"{used * 10}ms",
    }
    refused = await _send(limited, "/v1/embeddings")
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert _limits(refused.headers)["remaining-requests"] == "0"
    assert 100 <= int(refused.headers["retry-after-ms"]) <= 120


async def test_a_refusal_keeps_the_connection_unless_much_is_left_to_read(start: Start) -> None:
    """A small body is read and dropped; a large one is not even received."""
    limited = start(requests_per_s=1, request_burst=1)
    small, large = ({"input": "a" * size} for size in (100, 1_000_000))
    assert (await limited.http.post("/v1/embeddings", small)).status == 200
    refused = await limited.http.post("/v1/embeddings", small)
    assert (refused.status, refused.headers.get("connection")) == (429, None)
    refused = await limited.http.post("/v1/embeddings", large)
    assert (refused.status, refused.headers.get("connection")) == (429, "close")


async def test_grpc_says_what_is_left(start: Start) -> None:
    """The trailing metadata of answers, streams and refusals has the same names."""
    limited = start(requests_per_s=10, request_burst=4, tokens_per_min=6000)
    client = limited.service.client
    call = client.embedding.Embed(
        pb.EmbedRequest(texts=[TEXT]), metadata=(("x-request-id", "mine"),)
    )
    used = (await call).usage.input_tokens
    trailing = dict(await call.trailing_metadata())
    assert _limits(trailing)["remaining-requests"] == "3"
    assert _limits(trailing)["remaining-tokens"] == str(6000 - used)
    assert trailing["x-request-id"] == "mine"

    stream = await Stream.open(client)
    await stream.end()
    assert _limits(dict(await stream.call.trailing_metadata()))["remaining-requests"] == "2"

    for _ in range(2):
        await client.embed(TEXT)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.embed(TEXT)
    trailing = dict(refused.value.trailing_metadata())
    assert _limits(trailing)["remaining-requests"] == "0"
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    quota = error_details_pb2.QuotaFailure()
    assert any(detail.Unpack(quota) for detail in status.details)
    (violation,) = quota.violations
    assert violation.subject == "caller:ipv4:127.0.0.1"
    assert violation.quota_id == "REQUESTS_PER_SECOND"
    assert "10 per second, 4 at once" in violation.description


async def test_without_limits_nothing_is_said(start: Start) -> None:
    """Answers of a server without limits have none of these names."""
    limited = start()
    answer = await _send(limited, "/v1/embeddings")
    assert not _limits(answer.headers)
    call = limited.service.client.embedding.Embed(pb.EmbedRequest(texts=[TEXT]))
    await call
    assert not _limits(dict(await call.trailing_metadata()))


async def test_bad_requests_count(start: Start) -> None:
    """A malformed message uses a request, and no tokens."""
    limited = start(requests_per_s=1, request_burst=3, tokens_per_min=6000)
    client = limited.service.client
    malformed = await failure_of(client.send_bytes(EMBED_METHOD, b"\xff" * 1000))
    assert malformed.label == "MALFORMED_MESSAGE"
    # The status itself counts none: the next call may come before the server has ended this one.
    assert "('x-ratelimit-remaining-tokens', '6000')" in malformed.trailing
    assert (await failure_of(client.embed("  "))).reason == "EMPTY_INPUT"
    bad = await limited.http.post("/v1/embeddings", b"{")
    assert bad.status == 400
    assert _limits(bad.headers)["remaining-tokens"] == "6000"
    malformed = await failure_of(client.send_bytes(EMBED_METHOD, b"\xff" * 1000))
    assert malformed.reason == "RATE_LIMITED"
    assert (await limited.http.post("/v1/embeddings", b"{")).status == 429


async def test_probes_do_not_count(start: Start) -> None:
    """A caller that has used its limits is still alive."""
    limited = start(requests_per_s=1, request_burst=1)
    await _send(limited, "grpc")
    for _ in range(5):
        await limited.service.client.status("")
        assert (await limited.http.get("/health")).status == 200
    assert (await limited.http.get("/v1/models")).status == 429


async def test_other_callers_are_not_affected(start: Start) -> None:
    """Each caller has limits of its own."""
    limited = start(requests_per_s=1, request_burst=2, calls=8)

    async def embed(caller: str) -> Any:
        return await limited.service.client.embedding.Embed(
            pb.EmbedRequest(texts=[TEXT]), metadata=(("x-caller", caller),)
        )

    for _ in range(2):
        await embed("greedy")
    for number in range(5):
        assert (await failure_of(embed("greedy"))).metadata["caller"] == "greedy"
        await embed(f"other {number}")


async def test_tokens_are_settled_by_use(start: Start) -> None:
    """A caller pays for the tokens that the model read, however large its message was."""
    limited = start(tokens_per_min=600, token_burst=9000)
    text = "word " * 2000
    used = (await _send(limited, "grpc", text)).usage.input_tokens
    # The text was cut: its bytes are far more.
    assert used < len(text) / 8
    assert limited.tokens_left() == 9000 - used
    answer = await _send(limited, "/v1/embeddings", text)
    used += answer.json["usage"]["total_tokens"]
    assert _limits(answer.headers)["remaining-tokens"] == str(9000 - used)
    used += (await _send(limited, "tei.v1", TEXT)).metadata.compute_tokens
    assert limited.tokens_left() == 9000 - used
    # What is only tokenized is free.
    assert await limited.count_tokens(text) > 1000
    assert limited.tokens_left() == 9000 - used


async def test_a_message_with_more_tokens_than_are_left_is_refused(start: Start) -> None:
    """Its estimate is more than what calls in flight leave; it fits when they are settled."""
    limited = start(tokens_per_min=60_000, token_burst=100)
    limited.backend.hold()
    running = asyncio.ensure_future(_send(limited, "grpc", "b" * 320))
    await asyncio.to_thread(limited.backend.running.wait, PATIENCE_S)
    failure = await failure_of(_send(limited, "grpc", "c" * 320))
    reply = await _send(limited, "/v1/embeddings", "c" * 320)
    assert failure.label == "TOKENS_PER_MINUTE"
    assert failure.metadata["limit"] == "60000"
    assert int(failure.metadata["estimatedTokens"]) > int(failure.metadata["remainingTokens"])
    assert "are left, and this request has about" in failure.details
    assert reply.status == 429
    assert b"too many tokens" in reply.body
    limited.backend.release()
    await running
    await _send(limited, "grpc", "c" * 320)


async def test_a_debt_refuses_texts_and_nothing_else(start: Start) -> None:
    """Who has used more tokens than allowed may still ask for the models."""
    limited = start(tokens_per_min=60, token_burst=10)
    # Accepted, because none were used.
    used = (await _send(limited, "grpc", "many words " * 40)).usage.input_tokens
    assert used > 10
    failure = await failure_of(_send(limited, "grpc", "x"))
    assert failure.label == "TOKENS_PER_MINUTE"
    assert failure.retry_delay_s is not None
    await limited.service.client.models.ListModels(model_service_pb2.ListModelsRequest())
    assert (await limited.http.get("/v1/models")).status == 200
    limited.clock.now += failure.retry_delay_s
    await _send(limited, "grpc", "x")


async def test_open_calls_are_limited_for_each_caller(start: Start) -> None:
    """More calls at once than allowed are refused, at both ports, until one has ended."""
    limited = start(calls=2)
    limited.backend.hold()
    running = [asyncio.ensure_future(_send(limited, "grpc", text)) for text in "ab"]
    await until(lambda: limited.open_calls == 2)
    failure = await failure_of(_send(limited, "grpc"))
    assert (failure.reason, failure.label) == ("RATE_LIMITED", "CONCURRENT_CALLS")
    assert failure.metadata["limit"] == "2"
    assert failure.pushback_ms
    stream = Stream(limited.service.client)
    assert (await stream.failure()).label == "CONCURRENT_CALLS"
    assert (await _send(limited, "/embed")).status == 429
    limited.backend.release()
    await asyncio.gather(*running)
    await until(lambda: not limited.open_calls)
    await _send(limited, "grpc")


async def test_a_stream_is_slowed_and_loses_nothing(start: Start) -> None:
    """A stream beyond the limit is read as fast as the limit allows, to its end."""
    limited = start(requests_per_s=4, request_burst=8)
    stream = await Stream.open(limited.service.client)
    ids = [str(number) for number in range(20)]

    async def send() -> None:
        for one in ids:
            await stream.send((one, f"text {one}"))
        await stream.call.done_writing()

    sending = asyncio.ensure_future(send())
    results = await stream.rest()
    await sending
    assert await stream.call.code() is grpc.StatusCode.OK
    assert [one.id for one in results] == ids
    assert all(one.HasField("embedding") for one in results)
    # The opening and 5 messages at once; it leaves 2 of 8 to other calls.
    assert sum(limited.clock.slept) == pytest.approx(15 / 4)
    assert not limited.refusals(Limit.REQUESTS)
    await _send(limited, "grpc")


async def test_a_stream_waits_for_tokens(start: Start) -> None:
    """A stream that has used its tokens is not read further until they are there again."""
    limited = start(tokens_per_min=60, token_burst=40)
    text = "many words " * 10
    used = await limited.count_tokens(text)
    stream = await Stream.open(limited.service.client)
    for one in "abcd":
        await stream.send((one, text))
        (result,) = await stream.results(1)
        assert result.HasField("embedding")
    await stream.end()
    # Each waits until a quarter of the burst is left.
    waited_s = sum(limited.clock.slept)
    assert 3 * used - 30 <= waited_s <= 3 * used - 30 + 1
    assert not limited.refusals(Limit.TOKENS)
    assert limited.tokens_left() == max(int(40 - 4 * used + waited_s), 0)


async def test_a_slow_stream_goes_on_when_its_caller_gets_more(start: Start) -> None:
    """Changed settings hold for what runs."""
    limited = start(requests_per_s=0.01, request_burst=1)
    more = asyncio.Event()

    async def sleep(_: float) -> None:
        await more.wait()

    limited.rates._others._sleep = sleep
    stream = await Stream.open(limited.service.client)
    await stream.send(("a", TEXT))
    settings = limited.service.server._settings
    changed = settings.model_copy(update={"requests_per_s": 1000.0, "request_burst": 100})
    limited.service.server.open_calls.change_rates(changed)
    more.set()
    (result,) = await stream.results(1)
    assert result.HasField("embedding")
    await stream.end()


async def test_a_stream_of_tei_is_slowed(start: Start) -> None:
    """The same for the streams of tei.v1, each message of which is a request."""
    limited = start(requests_per_s=4, request_burst=4)

    async def requests() -> AsyncIterator[tei_pb2.EmbedRequest]:
        for number in range(10):
            yield tei_pb2.EmbedRequest(inputs=f"text {number}")

    answers = [one async for one in limited.tei.embed.EmbedStream(requests())]
    assert len(answers) == 10
    assert sum(limited.clock.slept) == pytest.approx(7 / 4)


async def test_a_stream_that_cannot_begin_is_told_when_it_can(start: Start) -> None:
    """Its caller has used so much that it would wait for longer than a stream may be idle."""
    limited = start(requests_per_s=0.01, request_burst=1)
    await _send(limited, "grpc")
    failure = await Stream(limited.service.client).failure()
    assert (failure.reason, failure.label) == ("RATE_LIMITED", "REQUESTS_PER_SECOND")
    assert failure.retry_delay_s is not None
    assert 100 <= failure.retry_delay_s <= 120
    assert not limited.clock.slept


async def test_a_stream_that_waits_ends_with_its_client(start: Start) -> None:
    """A cancelled stream leaves the queue of its caller, and the next one goes on."""
    limited = start(requests_per_s=1, request_burst=1)
    turn = asyncio.Event()

    async def sleep(_: float) -> None:
        await turn.wait()
        limited.clock.now += 1

    limited.rates._others._sleep = sleep
    first = await Stream.open(limited.service.client)
    await first.send(("a", TEXT))
    second = Stream(limited.service.client)
    await second.set_up()
    await until(lambda: limited.open_calls == 2)
    first.call.cancel()
    await until(lambda: limited.open_calls == 1)
    turn.set()
    assert (await second.call.read()).WhichOneof("step") == "ready"
    await second.end()


async def test_a_cancelled_call_pays_for_what_ran(start: Start) -> None:
    """Who leaves while the model runs has used its tokens all the same."""
    limited = start(tokens_per_min=60, token_burst=1000)
    limited.backend.hold()
    call = limited.service.client.embedding.Embed(pb.EmbedRequest(texts=[TEXT]))
    await asyncio.to_thread(limited.backend.running.wait, PATIENCE_S)
    call.cancel()
    await until(lambda: not limited.open_calls)
    limited.backend.release()
    used = await limited.count_tokens(TEXT)
    await until(lambda: limited.tokens_left() == 1000 - used)


async def test_the_client_waits_as_long_as_the_server_says(start: Start) -> None:
    """The shipped client tries again after the delay, and succeeds."""
    limited = start(requests_per_s=4, request_burst=1)
    async with AsyncClient(limited.service.address) as client:
        await client.embed([TEXT])
        second = asyncio.ensure_future(client.embed([TEXT]))
        await until(lambda: limited.refusals(Limit.REQUESTS) == 1)
        limited.clock.now += 1
        await second
    assert limited.refusals(Limit.REQUESTS) == 1


async def test_official_clients_follow_the_pushback(start: Start) -> None:
    """The core of gRPC, told to retry at once, waits as long as the server says."""
    limited = start(requests_per_s=4, request_burst=1)
    retry = {
        "name": [{}],
        "retryPolicy": {
            "maxAttempts": 2,
            "initialBackoff": "0.001s",
            "maxBackoff": "0.001s",
            "backoffMultiplier": 1,
            "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
        },
    }
    config = json.dumps({"methodConfig": [retry]})
    options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(limited.service.address, options=options) as channel:
        embed: Any = channel.unary_unary(EMBED_METHOD)
        request = pb.EmbedRequest(texts=[TEXT]).SerializeToString()
        await embed(request)
        second = embed(request, timeout=PATIENCE_S)
        waiting = asyncio.ensure_future(second)
        await until(lambda: limited.refusals(Limit.REQUESTS) == 1)
        limited.clock.now += 1
        await waiting
    assert limited.refusals(Limit.REQUESTS) == 1


def _limits(headers: Mapping[str, str]) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {
        name.lower().removeprefix(prefix): value
        for name, value in headers.items()
        if name.lower().startswith(prefix)
    }
