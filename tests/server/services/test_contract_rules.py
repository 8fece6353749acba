"""Rules of the contract that no other test of the services covers, over the wire."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from embedgrpc.v1 import tokenizer_service_pb2 as tokenizer
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.rankings import part, setup
from tests.server.service import (
    CROSS,
    EMBED,
    FIXTURES,
    PATIENCE_S,
    Client,
    Service,
    serving,
    settings_for,
    until,
)
from tests.server.streams import batch

GRPCURL = Path(__file__).parents[3] / ".cache" / "bin" / "grpcurl"
INTERACTIVE, BULK = WorkClass.INTERACTIVE, WorkClass.BULK
HYBRID = ModelSettings(id="hybrid", source=str(FIXTURES / "xlmr-bge-m3"))
QWEN = ModelSettings(id="qwen", source=str(FIXTURES / "qwen3-last"))
TASK = "Instruct: {}\nQuery:"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server with a model of every method to rank."""
    async with serving(settings_for(EMBED, CROSS, HYBRID, QWEN, cache_dir=cache_dir)) as started:
        yield started


in_module = pytest.mark.asyncio(loop_scope="module")


async def _rank(client: Client, model: str, query: str = "a query", **options: Any) -> Any:
    request = rerank.RerankRequest(
        model=model,
        query=query,
        documents=["one", "two words", "and three more"],
        options=rerank.RerankOptions(**options),
    )
    return await client.rerank.Rerank(request, timeout=PATIENCE_S)


async def _count(client: Client, model: str, *texts: str, **options: Any) -> Any:
    request = tokenizer.CountTokensRequest(
        model=model, texts=texts, options=tokenizer.TokenizeOptions(**options)
    )
    return await client.tokenizer.CountTokens(request, timeout=PATIENCE_S)


# Priority


async def _unary(client: Client, priority: common.Priority, metadata: Any) -> None:
    request = embedding.EmbedRequest(texts=["a"], options=embedding.EmbedOptions(priority=priority))
    await client.embedding.Embed(request, metadata=metadata, timeout=PATIENCE_S)


async def _ranked(client: Client, priority: common.Priority, metadata: Any) -> None:
    # Its query is a second input.
    request = rerank.RerankRequest(
        query="a", documents=["a"], options=rerank.RerankOptions(priority=priority)
    )
    await client.rerank.Rerank(request, metadata=metadata, timeout=PATIENCE_S)


async def _stream(client: Client, priority: common.Priority, metadata: Any) -> None:
    first = embedding.StreamEmbedSetup(options=embedding.EmbedOptions(priority=priority))
    messages = [embedding.StreamEmbedRequest(setup=first), batch([("1", "a")])]
    stream = client.embedding.StreamEmbed(iter(messages), metadata=metadata, timeout=PATIENCE_S)
    assert len([one async for one in stream]) == 2


async def _ranked_stream(client: Client, priority: common.Priority, metadata: Any) -> None:
    messages = [setup(priority=priority), part("1", "a", ["a"])]
    stream = client.rerank.StreamRerank(iter(messages), metadata=metadata, timeout=PATIENCE_S)
    assert len([one async for one in stream]) == 2


@pytest.mark.parametrize(
    ("call", "default"),
    [(_unary, INTERACTIVE), (_ranked, INTERACTIVE), (_stream, BULK), (_ranked_stream, BULK)],
)
@pytest.mark.parametrize("alias", [None, "bulk", "interactive"])
@pytest.mark.parametrize("field", common.Priority.values())
async def test_the_priority_of_a_call(
    serve: Serve,
    backend: HashBackend,
    *,
    call: Any,
    default: WorkClass,
    alias: str | None,
    field: common.Priority,
) -> None:
    """The field wins over the metadata, and both over what the method has by default."""
    service = await serve(backend=backend)
    counts = service.admission().ledger.outcome_counts
    before = dict(counts)
    await call(service.client, field, [("embedgrpc-work-class", alias)] if alias else [])
    expected = {None: default, "bulk": BULK, "interactive": INTERACTIVE}[alias]
    expected = {common.PRIORITY_BULK: BULK, common.PRIORITY_INTERACTIVE: INTERACTIVE}.get(
        field, expected
    )
    grown = {
        work_class
        for work_class in (INTERACTIVE, BULK)
        for key in [(work_class, SequenceOutcome.ANSWERED)]
        if counts[key] > before.get(key, 0)
    }
    assert grown == {expected}


# Rerank: prompts, usage, JSON


@in_module
async def test_a_query_has_the_prompt_that_was_asked_for(service: Service) -> None:
    """By default the model's; else by role, by name, as a text, or around an instruction."""
    client = service.client
    default = await _rank(client, "qwen")
    prompt = (await client.models.GetModel(models.GetModelRequest(model="qwen"))).model.prompts
    query = prompt["query"]
    assert query.startswith("Instruct: ")
    same: list[dict[str, Any]] = [
        {"query_input_type": common.INPUT_TYPE_QUERY},
        {"query_prompt_name": "query"},
        {"query_prompt_text": query},
        {"instruction": query.removeprefix("Instruct: ").removesuffix("\nQuery:")},
        {"document_prompt_name": "document"},
        {"document_input_type": common.INPUT_TYPE_DOCUMENT},
        {"document_prompt_text": ""},
    ]
    for options in same:
        assert await _rank(client, "qwen", **options) == default, options
    other = await _rank(client, "qwen", instruction="find a joke")
    assert other == await _rank(client, "qwen", query_prompt_text=TASK.format("find a joke"))
    assert other.results != default.results
    documents = await _rank(client, "qwen", document_prompt_text="passage: ")
    assert documents.usage.query_tokens == default.usage.query_tokens
    assert documents.usage.document_tokens > default.usage.document_tokens
    without = await _rank(client, "qwen", query_prompt_text="")
    plain = await _count(client, "qwen", "a query")
    assert without.usage.query_tokens == plain.total_tokens


@in_module
@pytest.mark.parametrize("model", ["cross", "embed", "hybrid"])
async def test_only_models_that_take_one_get_an_instruction(service: Service, model: str) -> None:
    """Others refuse it by name, and say so beforehand, in unary calls and streams."""
    described = await service.client.models.ListModels(models.ListModelsRequest())
    takes = {one.id: one.takes_instruction for one in described.models}
    assert takes == {"cross": False, "embed": False, "hybrid": False, "qwen": True}
    failure = await failure_of(_rank(service.client, model, instruction="find a joke"))
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (failure.reason, failure.fields) == ("UNSUPPORTED", ("options.instruction",))
    stream = service.client.rerank.StreamRerank(
        iter([setup(model, instruction="find a joke")]), timeout=PATIENCE_S
    )
    failure = await failure_of(stream.read())
    assert (failure.reason, failure.fields) == ("UNSUPPORTED", ("setup.options.instruction",))


@in_module
@pytest.mark.parametrize(
    ("options", "reason", "field"),
    [
        ({"query_input_type": 77}, "INVALID_REQUEST", "query_input_type"),
        ({"document_input_type": 77}, "INVALID_REQUEST", "document_input_type"),
        ({"query_prompt_name": ""}, "INVALID_REQUEST", "query_prompt_name"),
        ({"document_prompt_name": ""}, "INVALID_REQUEST", "document_prompt_name"),
        ({"query_prompt_name": "none"}, "UNSUPPORTED", "query_prompt_name"),
        ({"document_prompt_name": "none"}, "UNSUPPORTED", "document_prompt_name"),
    ],
)
async def test_a_prompt_that_does_not_exist_is_named(
    service: Service, options: dict[str, Any], reason: str, field: str
) -> None:
    """The field says whether it is the query's or the documents'."""
    failure = await failure_of(_rank(service.client, "qwen", **options))
    assert (failure.reason, failure.fields) == (reason, (f"options.{field}",))


@in_module
@pytest.mark.parametrize("model", ["embed", "hybrid", "qwen", "cross"])
async def test_usage_is_split(service: Service, model: str) -> None:
    """The tokens of query and documents add up, and are those that CountTokens counts."""
    usage = (await _rank(service.client, model)).usage
    assert usage.query_tokens + usage.document_tokens == usage.input_tokens
    documents = ("one", "two words", "and three more")
    if model == "cross":
        # The query is read with each document, and so are the special tokens of the pair.
        query = await _count(service.client, model, "a query", omit_special_tokens=True)
        single = await _count(service.client, model, *documents, omit_special_tokens=True)
        assert usage.document_tokens == single.total_tokens
        assert usage.query_tokens == 3 * (query.total_tokens + 3)
        return
    query = await _count(service.client, model, "a query", input_type=common.INPUT_TYPE_QUERY)
    single = await _count(service.client, model, *documents, input_type=common.INPUT_TYPE_DOCUMENT)
    assert usage.query_tokens == query.total_tokens
    assert usage.document_tokens == single.total_tokens


@in_module
async def test_streams_count_the_same_usage(service: Service) -> None:
    """A ranking of a stream costs what the call of its own would."""
    documents = ["one", "two words", "and three more"]
    messages = [setup("cross"), part("1", "a query", documents)]
    stream = service.client.rerank.StreamRerank(iter(messages), timeout=PATIENCE_S)
    _, answer = [one async for one in stream]
    assert answer.result.ranking.usage == (await _rank(service.client, "cross")).usage


@in_module
async def test_index_and_score_are_in_json(service: Service) -> None:
    """JSON leaves out fields that are unset: 0 is set."""
    request = rerank.RerankRequest(
        model="cross", query="q", documents=["a", " "], allow_partial=True
    )
    response = await service.client.rerank.Rerank(request)
    as_json = json_format.MessageToDict(response)
    assert as_json["results"][0]["index"] == 0
    assert "score" in as_json["results"][0]
    assert as_json["failures"][0]["index"] == 1
    request.documents[:] = [" ", "a"]
    as_json = json_format.MessageToDict(await service.client.rerank.Rerank(request))
    assert as_json["failures"][0]["index"] == 0
    zero = rerank.RankedDocument(index=0, score=0.0)
    again = rerank.RankedDocument.FromString(zero.SerializeToString())
    assert json_format.MessageToDict(again) == {"index": 0, "score": 0.0}


@pytest.mark.skipif(not GRPCURL.exists(), reason="grpcurl is not there")
@in_module
async def test_grpcurl_shows_every_index(service: Service) -> None:
    """The output of the usual tool has index and score of each document."""
    call = {"model": "cross", "query": "q", "documents": ["a", "b b"]}
    process = await asyncio.create_subprocess_exec(
        *(str(GRPCURL), "-plaintext", "-d", json.dumps(call), service.address),
        "embedgrpc.v1.RerankService/Rerank",
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S * 3)
    results = json.loads(output)["results"]
    assert sorted(one["index"] for one in results) == [0, 1]
    assert all("score" in one for one in results)


# The server and its models


@in_module
async def test_the_server_describes_itself(service: Service) -> None:
    """Its versions, its default model, and since when it runs."""
    before = time.time()
    first = (await service.client.models.GetServer(models.GetServerRequest())).server
    assert first.version == version("embedgrpc")
    assert first.contract_version == "1.4"
    assert first.default_model == "embed"
    began = first.start_time.ToMilliseconds() / 1000
    assert before - 3600 < began <= time.time()
    assert abs(began + first.uptime.ToMilliseconds() / 1000 - before) < PATIENCE_S
    second = (await service.client.models.GetServer(models.GetServerRequest())).server
    assert second.start_time == first.start_time
    assert second.uptime.ToNanoseconds() >= first.uptime.ToNanoseconds()


@in_module
async def test_a_model_describes_its_use(service: Service) -> None:
    """Methods to rank, the limit of a query, prompts, and the default prompt."""
    listed = await service.client.models.ListModels(models.ListModelsRequest())
    found = {one.id: one for one in listed.models}
    assert {name: one.rerank_method for name, one in found.items()} == {
        "cross": models.RERANK_METHOD_CROSS_ENCODER,
        "embed": models.RERANK_METHOD_SIMILARITY,
        "hybrid": models.RERANK_METHOD_HYBRID,
        "qwen": models.RERANK_METHOD_SIMILARITY,
    }
    assert found["cross"].max_query_tokens == 0
    for name in ("embed", "hybrid", "qwen"):
        assert 0 < found[name].max_query_tokens <= found[name].max_tokens
    assert all(one.state == models.MODEL_STATE_READY for one in found.values())
    assert set(found["qwen"].prompts) == {"query", "document"}
    assert not found["qwen"].default_prompt_name


CARDS: dict[str, tuple[str, list[str]]] = {
    "a list": ("---\nlanguage:\n- en\n- zh-Hans\n---\n# Card", ["en", "zh-Hans"]),
    "one": ("---\nlanguage: de\nlicense: mit\n---\n", ["de"]),
    "none": ("---\nlicense: mit\n---\n", []),
    "no front matter": ("# Card", []),
    "not languages": ("---\nlanguage: [1, 'no tag!', en]\n---\n", ["en"]),
}


@pytest.mark.parametrize("row", CARDS.values(), ids=CARDS)
async def test_languages_are_those_of_the_card(
    serve: Serve, tmp_path: Path, row: tuple[str, list[str]]
) -> None:
    """A model states the languages that its card names."""
    card, languages = row
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "bert-cls", folder)
    (folder / "README.md").write_text(card, "utf-8")
    started = await serve(ModelSettings(id="one", source=str(folder)))
    found = await started.client.models.GetModel(models.GetModelRequest(model="one"))
    assert list(found.model.languages) == languages


# StreamRerank


async def test_an_unfinished_query_is_idle(serve: Serve) -> None:
    """A client that never sends the last part is told so, and the query has an error."""
    service = await serve(stream_idle_timeout_s=0.2)
    stream = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
    await stream.write(setup())
    await stream.write(part("whole", "q", ["a"]))
    await stream.write(part("open", "q", ["a", "b"], more=True))
    assert (await stream.read()).WhichOneof("step") == "ready"
    assert (await stream.read()).result.WhichOneof("outcome") == "ranking"
    failure = await failure_of(stream.read())
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (failure.reason, failure.label) == ("DEADLINE_EXPIRED", "STREAM_IDLE")
    await until(lambda: not service.open_streams)
    await service.check_alive()


async def test_a_stop_in_the_middle_of_a_query(serve: Serve) -> None:
    """The open query has an error that says to send it again; then the stream ends."""
    service = await serve()
    stream = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
    await stream.write(setup())
    await stream.write(part("open", "q", ["a", "b"], more=True))
    assert (await stream.read()).WhichOneof("step") == "ready"
    await until(lambda: service.bidi._in_flight == 2)
    service.server._open_streams.drain()
    result = (await stream.read()).result
    assert result.id == "open"
    assert result.error.reason == common.ERROR_REASON_SHUTTING_DOWN
    assert result.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    failure = await failure_of(stream.read())
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


@in_module
async def test_ids_of_a_rerank_stream(service: Service) -> None:
    """An id may be empty, has up to 256 characters, and may come again once it is answered."""
    for identifier in ("", "\u4e2d" * 256, "plain"):
        stream = service.client.rerank.StreamRerank(timeout=PATIENCE_S)
        await stream.write(setup("cross"))
        assert (await stream.read()).WhichOneof("step") == "ready"
        for _ in range(2):
            await stream.write(part(identifier, "q", ["a"]))
            assert (await stream.read()).result.id == identifier
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
