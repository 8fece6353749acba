"""The vectors of tokens, beside those of sentence-transformers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from embedgrpc.models.kinds import WeightType
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import tokenizer_service_pb2 as tokens
from tests.models.runner import copy_fixture
from tests.server.failures import failure_of
from tests.server.service import FIXTURES, PATIENCE_S, Client, Service, serving, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXPECTED: dict[str, Any] = json.loads((FIXTURES / "token-vectors/expected.json").read_text())
NAMES = sorted(EXPECTED["models"])
EXPORTED = [name for name in NAMES if (FIXTURES / name / "onnx").exists()]
# Without vectors of tokens that are pooled.
OTHERS = ("colbert-bert", "splade-bert", "static-potion")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """One server with models of several families, exports and safetensors."""
    folder = tmp_path_factory.mktemp("plain")
    served = [ModelSettings(id=name, source=str(FIXTURES / name)) for name in (*NAMES, *OTHERS)]
    served += [
        ModelSettings(
            id=f"{name}-plain", source=str(copy_fixture(name, folder, leave_out=["onnx"]))
        )
        for name in EXPORTED
    ]
    served.append(
        ModelSettings(id="int8", source=str(FIXTURES / "bert-mean"), weight_type=WeightType.INT8)
    )
    async with serving(settings_for(*served, cache_dir=cache_dir)) as started:
        yield started


async def embed(client: Client, *texts: str, model: str, **options: Any) -> Any:
    """Return the token vectors of texts."""
    response = await client.embed(
        *texts,
        model=model,
        options=pb.EmbedOptions(token_vectors=True, **options),
        max_response_bytes=1 << 24,
    )
    return [one.token_vectors for one in response.embeddings]


def rows(found: pb.TokenVectors) -> Any:
    """Return the vectors, float32 [tokens, dimensions]."""
    return np.array(found.vectors.values, np.float32).reshape(-1, found.vectors.dimensions)


def places(found: pb.TokenVectors) -> list[tuple[int, int]]:
    """Return where each token starts and ends, in characters."""
    return list(zip(found.character_starts, found.character_ends, strict=True))


async def tokenize(client: Client, text: str, model: str, **options: Any) -> Any:
    """Return the tokens of a text, as TokenizerService does."""
    request = tokens.TokenizeRequest(
        model=model, texts=[text], options=options, max_response_bytes=1 << 24
    )
    response = await client.tokenizer.Tokenize(request, timeout=PATIENCE_S)
    return response.texts[0]


def check_places(found: pb.TokenVectors, whole: Any, kept: slice) -> None:
    """Check that tokens and places are those that TokenizerService gives for the whole text."""
    count = len(found.ids)
    assert found.vectors.row_count == count
    own = ~np.array(whole.special, bool)
    for name in (
        *("ids", "character_starts", "character_ends", "byte_starts", "byte_ends"),
        *("special", "of_prompt"),
    ):
        values = np.array(getattr(whole, name))
        wanted = [*values[:1][~own[:1]], *values[own][kept], *values[-1:][~own[-1:]]]
        assert list(getattr(found, name)) == wanted, name


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}-plain" for name in EXPORTED)])
async def test_they_are_those_of_the_reference(service: Service, name: str) -> None:
    """Every token's vector is that of sentence-transformers, with and without a prompt."""
    answers = EXPECTED["models"][name.removesuffix("-plain")]
    found = await embed(service.client, *EXPECTED["texts"], model=name, prompt_text="")
    found += await embed(
        service.client, EXPECTED["texts"][0], model=name, prompt_text=EXPECTED["prompt"]
    )
    for one, wanted in zip(found, [*answers["default"], *answers["prompt"]], strict=True):
        np.testing.assert_allclose(rows(one), wanted, rtol=0, atol=EXPECTED["tolerance"])


@pytest.mark.parametrize("name", NAMES)
async def test_places_are_those_of_the_tokenizer(service: Service, name: str) -> None:
    """Ids, places and flags are what TokenizerService returns, with a prompt too."""
    texts = [*EXPECTED["texts"], "z\u0301\u0316 \ufb01ne a[SEP]b \U0001f469\u200d\U0001f52c"]
    for prompt in ("", "\u4e2d \U0001f600: "):
        found = await embed(service.client, *texts, model=name, prompt_text=prompt)
        for text, one in zip(texts, found, strict=True):
            whole = await tokenize(service.client, text, name, prompt_text=prompt)
            check_places(one, whole, slice(None))
            assert any(one.of_prompt) == bool(prompt)


@pytest.mark.parametrize("name", ["bert-mean", "roberta-mean", "xlmr-bge-m3", "gemma-dense"])
@pytest.mark.parametrize("truncation", [common.TRUNCATION_END, common.TRUNCATION_START])
@pytest.mark.parametrize("blanks", [1, 9000])
async def test_places_in_texts_that_are_cut(
    service: Service, name: str, truncation: common.Truncation, blanks: int
) -> None:
    """Places are those in the text as it was sent, whichever end is cut and however often."""
    words = "some words, na\u00efve \u4e2d\u6587\u3002 "
    text = (words * 40).strip()
    text = text[: len(text) // 2] + " " * blanks + text[len(text) // 2 :]
    ordinary = await service.client.embed(
        text, model=name, options=pb.EmbedOptions(truncation=truncation, max_tokens=16)
    )
    (found,) = await embed(service.client, text, model=name, truncation=truncation, max_tokens=16)
    assert ordinary.embeddings[0].token_count == len(found.ids) == 16
    assert ordinary.embeddings[0].truncated
    whole = await tokenize(service.client, text, name)
    kept = 16 - sum(whole.special)
    check_places(
        found, whole, slice(-kept, None) if truncation == common.TRUNCATION_START else slice(kept)
    )


async def test_places_in_texts_that_are_tokenized_in_pieces(service: Service) -> None:
    """Blanks that take many pieces do not move the places of the words behind them."""
    short = "the river flows to the sea"
    text = short.replace("river ", "river" + "\t \n" * 60_000)
    (plain,) = await embed(service.client, short, model="bert-mean")
    wanted = [short[slice(*place)] for place in places(plain)]
    for truncation in (common.TRUNCATION_END, common.TRUNCATION_START, common.TRUNCATION_NONE):
        (found,) = await embed(service.client, text, model="bert-mean", truncation=truncation)
        assert [text[slice(*place)] for place in places(found)] == wanted
        assert places(found)[-2][1] == len(text)
        assert rows(found) == pytest.approx(rows(plain), abs=1e-6)


@pytest.mark.parametrize("name", ["bert-mean", "qwen3-last", "int8"])
async def test_a_token_has_one_vector_however_its_text_is_sent(service: Service, name: str) -> None:
    """Alone, beside longer texts and in a stream: the same within 1e-6."""
    text = EXPECTED["texts"][0]
    texts = [text, *(f"{'word ' * number} {text}" for number in range(1, 8))]
    (alone,) = await embed(service.client, text, model=name)
    beside = (await embed(service.client, *texts, model=name))[0]
    inputs = [pb.StreamEmbedInput(id=str(place), text=one) for place, one in enumerate(texts)]

    async def requests() -> AsyncIterator[pb.StreamEmbedRequest]:
        options = pb.EmbedOptions(token_vectors=True)
        yield pb.StreamEmbedRequest(setup=pb.StreamEmbedSetup(model=name, options=options))
        yield pb.StreamEmbedRequest(batch=pb.StreamEmbedBatch(inputs=inputs))

    streamed = {}
    async for response in service.client.embedding.StreamEmbed(requests(), timeout=PATIENCE_S):
        for result in response.results.results:
            streamed[result.id] = result.embedding.token_vectors
    assert len(streamed) == len(texts)
    for other in (beside, streamed["0"]):
        assert list(other.ids) == list(alone.ids)
        np.testing.assert_allclose(rows(other), rows(alone), rtol=0, atol=1e-6)


async def test_vectors_are_encoded_as_asked(service: Service) -> None:
    """Encoding applies to the vectors of tokens; dimensions and normalize do not."""
    text = EXPECTED["texts"][0]
    (plain,) = await embed(service.client, text, model="bert-mean")
    (short,) = await embed(service.client, text, model="bert-mean", dimensions=4, normalize=False)
    assert short == plain
    (half,) = await embed(
        service.client, text, model="bert-mean", encoding=pb.VECTOR_ENCODING_FLOAT16
    )
    values = np.frombuffer(half.vectors.data, "<f2").reshape(-1, half.vectors.dimensions)
    np.testing.assert_array_equal(values, rows(plain).astype(np.float16))
    (small,) = await embed(
        service.client, text, model="bert-mean", encoding=pb.VECTOR_ENCODING_INT8
    )
    scales = np.array(small.vectors.scales, np.float32)
    values = np.frombuffer(small.vectors.data, np.int8).reshape(-1, small.vectors.dimensions)
    np.testing.assert_allclose(values * scales[:, None], rows(plain), atol=scales.max())


async def test_the_dense_vector_stays_the_same(service: Service) -> None:
    """The representations that are returned beside the vectors of tokens are those without."""
    text = EXPECTED["texts"][0]
    for name in ("bert-mean", "xlmr-bge-m3"):
        model = await service.client.models.GetModel(models.GetModelRequest(model=name))
        forms = model.model.representations
        both = await service.client.embed(
            text, model=name, options=pb.EmbedOptions(token_vectors=True, representations=forms)
        )
        alone = await service.client.embed(
            text, model=name, options=pb.EmbedOptions(representations=forms)
        )
        assert not alone.embeddings[0].HasField("token_vectors")
        both.embeddings[0].ClearField("token_vectors")
        assert both.embeddings[0] == alone.embeddings[0]


@pytest.mark.parametrize(
    ("name", "advice", "options"),
    [
        ("colbert-bert", "MULTI_VECTOR", {"input_type": common.INPUT_TYPE_DOCUMENT}),
        ("splade-bert", "no dense vectors", {}),
        ("static-potion", "with an encoder", {}),
    ],
)
async def test_models_without_are_refused(
    service: Service, name: str, advice: str, options: dict[str, Any]
) -> None:
    """The error names the option and what to do; the description of the model says it first."""
    failure = await failure_of(embed(service.client, "a", model=name, **options))
    assert failure.reason == "UNSUPPORTED"
    assert advice in failure.details
    assert failure.fields == ("options.token_vectors",)
    model = await service.client.models.GetModel(models.GetModelRequest(model=name))
    assert model.model.token_dimensions == 0


async def test_models_say_how_long_the_vectors_are(service: Service) -> None:
    """`Model.token_dimensions` is the length of each vector, before the model's own layers."""
    for name in NAMES:
        model = await service.client.models.GetModel(models.GetModelRequest(model=name))
        wanted = len(EXPECTED["models"][name]["default"][0][0])
        assert model.model.token_dimensions == wanted


async def test_answers_that_are_too_large_are_refused_before_any_work(cache_dir: Path) -> None:
    """The vectors of all tokens count, and the error says how large the answer would be."""
    model = ModelSettings(id="m", source=str(FIXTURES / "bert-mean"))
    text = "word " * 200
    async with serving(settings_for(model, cache_dir=cache_dir, max_response_bytes=8192)) as small:
        failure = await failure_of(embed(small.client, text, model="m"))
        assert (failure.reason, failure.label) == ("INVALID_REQUEST", "RESPONSE_TOO_LARGE")
        assert int(failure.metadata["responseBytes"]) > 64 * 32 * 4
        assert (await small.client.embed(text, model="m")).embeddings
