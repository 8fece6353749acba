"""Models on Triton that take texts and tokenize by themselves, through the service."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedgrpc.server.connections.listening import StartError
from embedgrpc.server.process.server import Server
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2, rerank_service_pb2
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import model_service_pb2 as models
from tests.backends.triton.kserve_server import Fault, KServeServer, spell
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.service import FIXTURES, PATIENCE_S, Service, settings_for, until
from tests.server.services.test_health import EMBEDDING, NOT_SERVING, SERVING
from tests.triton.environment import Environment
from tests.triton.made_up import write_spelling
from tests.triton.server import TritonServer

TEXTS = ("a short text", "中文也行, und Umlaute: äöü", "x", "🙂🙃", "a tab\tand\nlines\x00")


@pytest.fixture
def server() -> Any:
    """A server whose model takes texts."""
    with KServeServer() as running:
        running.inputs = [("TEXT", "BYTES")]
        yield running


def settings_of(address: str, **changes: Any) -> ModelSettings:
    """The model as it is served from here."""
    values = {"id": "far", "source": f"triton:{address}/m", "normalize": False, **changes}
    return ModelSettings(**values)


async def embed(service: Service, *texts: str, **options: Any) -> Any:
    """The answer to a call, and its vectors: float32 [texts, 4]."""
    answer = await service.client.embed(*texts, options=embedding.EmbedOptions(**options))
    return answer, np.array([list(one.dense.values) for one in answer.embeddings], np.float32)


def spelled(*texts: str) -> Any:
    """What the model makes of texts: float32 [texts, 4]."""
    return spell(texts)["sentence_embedding"]


@pytest.mark.parametrize("shape", [[-1, 1], [-1, -1], [-1]])
async def test_texts_arrive_as_they_are(
    shape: list[int], server: KServeServer, serve: Serve
) -> None:
    """Every text reaches the model unchanged, in each tensor shape."""
    server.text_shape = shape
    service = await serve(settings_of(server.address))
    server.texts.clear()
    _, vectors = await embed(service, *TEXTS)
    assert sorted(text for batch in server.texts for text in batch) == sorted(TEXTS)
    np.testing.assert_array_equal(vectors, spelled(*TEXTS))
    assert server.shapes[-1] == (len(server.texts[-1]), 1)[: len(shape)]


async def test_what_is_told_of_the_model(server: KServeServer, serve: Serve) -> None:
    """Without a folder, outputs and settings describe it; where it runs identifies it."""
    service = await serve(settings_of(server.address, prompts={"query": "q: "}, max_tokens=100))
    request = models.GetModelRequest(model="far")
    told = (await service.client.models.GetModel(request)).model
    assert (told.dimensions, told.max_tokens, told.normalized) == (4, 100, False)
    assert (told.device, told.revision, told.weight_type) == ("triton", "", "")
    assert told.prompts == {"query": "q: "}
    assert list(told.representations) == [embedding.REPRESENTATION_DENSE]
    assert len(told.fingerprint) == 64
    assert await service.client.status(f"{EMBEDDING}/far") == SERVING


async def test_declared_fingerprints_hold_anywhere(server: KServeServer, serve: Serve) -> None:
    """The same declared fingerprint is the same space on any server, with the same settings."""
    server.parameters["embedgrpc_fingerprint"] = "v1"
    with KServeServer() as other:
        other.inputs, other.parameters = server.inputs, server.parameters
        service = await serve(
            settings_of(server.address, id="a"),
            settings_of(other.address, id="b"),
            settings_of(other.address, id="c", normalize=True),
        )
        first, same, another = [
            (await service.client.embed("a text", model=one)).fingerprint for one in "abc"
        ]
    assert first == same != another


async def test_prompts_stand_in_front(server: KServeServer, serve: Serve) -> None:
    """A prompt is text in front of a text."""
    service = await serve(settings_of(server.address, prompts={"query": "query: "}))
    _, vectors = await embed(service, "text", input_type=common_pb2.INPUT_TYPE_QUERY)
    np.testing.assert_array_equal(vectors, spelled("query: text"))


async def test_unit_length_is_set(server: KServeServer, serve: Serve) -> None:
    """With the setting normalize, vectors get unit length here."""
    service = await serve(settings_of(server.address, normalize=True))
    _, vectors = await embed(service, *TEXTS)
    expected = spelled(*TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


async def test_tokens_are_bytes(server: KServeServer, serve: Serve) -> None:
    """Limits and usage count bytes of UTF-8, where other models count tokens."""
    service = await serve(settings_of(server.address))
    answer, _ = await embed(service, *TEXTS)
    sizes = [len(text.encode()) for text in TEXTS]
    assert [one.token_count for one in answer.embeddings] == sizes
    assert answer.usage.input_tokens == sum(sizes)
    budget = service.server.catalog.find("far").ready().scheduler.budget
    assert (budget.tokens, budget.overhead_tokens) == (4 * 512, 4 * 32)


@pytest.mark.parametrize(
    ("truncation", "limit", "left"),
    [
        (common_pb2.TRUNCATION_END, 5, "aä"),
        (common_pb2.TRUNCATION_END, 6, "aä€"),
        (common_pb2.TRUNCATION_START, 4, "😀"),
        (common_pb2.TRUNCATION_START, 6, "😀"),
        (common_pb2.TRUNCATION_START, 7, "€😀"),
    ],
)
async def test_no_character_is_cut(
    truncation: Any, limit: int, left: str, server: KServeServer, serve: Serve
) -> None:
    """A text that is too long is cut between characters, and marked as truncated."""
    service = await serve(settings_of(server.address))
    answer, vectors = await embed(service, "aä€😀", truncation=truncation, max_tokens=limit)
    assert server.texts[-1] == [left]
    np.testing.assert_array_equal(vectors, spelled(left))
    assert answer.embeddings[0].truncated


async def test_too_long_texts_may_be_refused(server: KServeServer, serve: Serve) -> None:
    """Where nothing may be cut, a text of more bytes than the limit is refused."""
    service = await serve(settings_of(server.address, max_tokens=9))
    await embed(service, "ä" * 4, truncation=common_pb2.TRUNCATION_NONE)
    failure = await failure_of(embed(service, "ä" * 5, truncation=common_pb2.TRUNCATION_NONE))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_documents_are_ranked(server: KServeServer, serve: Serve) -> None:
    """As any model of dense vectors, it ranks by similarity."""
    service = await serve(settings_of(server.address))
    request = rerank_service_pb2.RerankRequest(query="b", documents=["zz" * 40, "b", "ä"])
    answer = await service.client.rerank.Rerank(request, timeout=PATIENCE_S)
    assert answer.results[0].index == 1


async def test_health_follows_the_server(server: KServeServer, serve: Serve) -> None:
    """It is NOT_SERVING while its server is lost, as any other model."""
    service = await serve(settings_of(server.address), health_interval_s=3600)
    model = service.server.catalog.find("far")
    server.stop()
    await until(lambda: model.state.name == "UNAVAILABLE")
    assert await service.client.status(f"{EMBEDDING}/far") == NOT_SERVING
    server.start()
    await until(lambda: model.state.name == "READY")
    await embed(service, *TEXTS)


async def test_failures_name_no_text(
    server: KServeServer, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors hold neither the texts nor the messages of the server."""
    service = await serve(settings_of(server.address))
    server.fault = Fault.BROKEN
    failure = await failure_of(embed(service, "a secret text"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "BACKEND_FAILED")
    lines = [failure.details, failure.trailing, *(str(one.__dict__) for one in caplog.records)]
    assert not [one for one in lines if "secret" in one or "qwxz" in one]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"normalize": None}, "set normalize for this model"),
        ({"pooling": "mean"}, "pooling cannot be set for it"),
        ({"weight_type": "int8"}, "weight_type cannot be set for it"),
        ({"default_prompt_name": "query"}, "is none of its prompts"),
        ({"files": str(FIXTURES / "bert-cls")}, "files is set, but"),
        ({"fallback": str(FIXTURES / "bert-cls")}, "fallback is set, but"),
        ({"escape_special_tokens": True}, "escape_special_tokens is set, but"),
        ({"output": "nothing"}, "has the outputs sentence_embedding: one must be"),
    ],
)
async def test_settings_must_fit(
    changes: dict[str, Any], problem: str, server: KServeServer, cache_dir: Path
) -> None:
    """Settings that do not apply to such a model are refused, and a missing one is asked for."""
    model = settings_of(server.address, **changes)
    assert problem in await refusal(model, cache_dir)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"outputs": [("sentence_embedding", "FP32", [-1])]}, "has no fixed length"),
        ({"outputs": [("logits", "FP32", [3])]}, "scores single texts"),
        ({"outputs": [("score", "FP32", [1])]}, "scores single texts"),
        ({"outputs": [("hidden", "FP32", [-1, 4])]}, "one must be a vector for each text"),
        ({"outputs": [("a", "FP32", [4]), ("b", "FP32", [4])]}, "one must be a vector for each"),
        ({"text_shape": [-1, 2]}, "it must take any number of them"),
        ({"text_shape": [1]}, "it must take any number of them"),
        ({"text_shape": []}, "it must take any number of them"),
    ],
)
async def test_models_must_fit(
    changes: dict[str, Any], problem: str, server: KServeServer, cache_dir: Path
) -> None:
    """A model without one vector per text ends the start."""
    for name, value in changes.items():
        setattr(server, name, value)
    assert problem in await refusal(settings_of(server.address), cache_dir)


async def refusal(model: ModelSettings, cache_dir: Path) -> str:
    """Why a model cannot be served; one line."""
    async with Server(settings_for(model, cache_dir=cache_dir)) as running:
        with pytest.raises(StartError) as caught:
            await running.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_the_only_vector_is_taken(server: KServeServer, serve: Serve) -> None:
    """The only output of one vector per text is used, with any name."""
    server.outputs = [("v", "FP32", [4]), ("tokens", "FP32", [-1, 4])]
    server.text_model = lambda texts: {"v": spelled(*texts)}
    service = await serve(settings_of(server.address))
    _, vectors = await embed(service, *TEXTS)
    np.testing.assert_array_equal(vectors, spelled(*TEXTS))


@pytest.mark.triton
async def test_a_real_tritonserver_gets_the_texts(
    triton_environment: Environment, tmp_path: Path, serve: Serve
) -> None:
    """A model of TYPE_STRING in a real tritonserver answers with what it makes of the texts."""
    write_spelling(tmp_path, "spelling")
    with TritonServer(triton_environment, tmp_path) as running:
        source = f"triton:{running.address}/spelling"
        service = await serve(settings_of(running.address, source=source))
        _, vectors = await embed(service, *TEXTS)
        np.testing.assert_array_equal(vectors, spelled(*TEXTS))
        many = [f"{text} {number}" for number in range(30) for text in TEXTS]
        _, vectors = await embed(service, *many)
        np.testing.assert_array_equal(vectors, spelled(*many))
