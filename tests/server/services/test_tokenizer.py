"""Tokenize and CountTokens, beside the library that the models' authors use."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import tokenizers
from tokenizers import processors

from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import tokenizer_service_pb2 as pb
from tests.backends.triton.kserve_server import KServeServer
from tests.server.failures import failure_of
from tests.server.service import (
    CROSS,
    FIXTURES,
    PATIENCE_S,
    Client,
    Service,
    serving,
    settings_for,
    until,
)
from tests.server.services.test_text_models import settings_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

# WordPiece, byte-level BPE, Unigram, BPE over a metaspace, and BPE with a chat template's tokens.
NAMES = ("bert-cls", "roberta-mean", "xlmr-bge-m3", "gemma-dense", "qwen3-last", "cross-bert")
# No place is known where its texts may be cut.
UNCUT = ("gemma-dense",)
MAX_INPUTS = 16
QUERY_PROMPT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
TEXTS = {
    "empty": "",
    "blank": " \n\t ",
    "words": "The quick brown fox, and 3 words.",
    "accents": "Cafe\u0301 na\u00efve \u00c5ngstr\u00f6m",
    "combining marks": "z\u0301\u0316\u0489 \u0301\u0301",
    "chinese": "\u4e2d\u6587\u548c\u65e5\u672c\u8a9e\u3002\u5206\u8a5e",
    "korean": "\ud55c\uad6d\uc5b4 \ubb38\uc7a5",
    "emoji": "a \U0001f600b \U0001f469\u200d\U0001f52c \u2764\ufe0f!",
    "astral": "\U00020000\U0002a6d6x",
    "special": "a [SEP] b </s> c",
    "ligatures": "\ufb01ne \u2168 \u00bd",
    "control": "a\0b\x01c\u200bd",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server with a model for each kind of tokenizer."""
    served = [ModelSettings(id=name, source=str(FIXTURES / name)) for name in NAMES]
    settings = settings_for(*served, cache_dir=cache_dir, max_inputs=MAX_INPUTS)
    async with serving(settings) as started:
        yield started


def _library(name: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(FIXTURES / name / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if name == "roberta-mean":
        # As transformers 5 sets it for this class; only the places of blank tokens depend on it.
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=True
        )
    return tokenizer


async def tokenize(client: Client, *texts: str, model: str = "", **options: Any) -> Any:
    """Return the tokens of texts."""
    request = pb.TokenizeRequest(
        model=model, texts=texts, options=pb.TokenizeOptions(**options), max_response_bytes=1 << 24
    )
    response = await client.tokenizer.Tokenize(request, timeout=PATIENCE_S)
    assert response.model == model or not model
    return response.texts


async def count(client: Client, *texts: str, model: str = "", **options: Any) -> Any:
    """Return the response of CountTokens."""
    request = pb.CountTokensRequest(model=model, texts=texts, options=pb.TokenizeOptions(**options))
    return await client.tokenizer.CountTokens(request, timeout=PATIENCE_S)


def check_places(text: str, tokenized: pb.TokenizedText) -> None:
    """Check that both kinds of offsets name the same part of the text."""
    fields = (
        tokenized.tokens, tokenized.character_starts, tokenized.character_ends,
        tokenized.byte_starts, tokenized.byte_ends, tokenized.special, tokenized.of_prompt,
    )  # fmt: skip
    assert {len(one) for one in fields} == {len(tokenized.ids)}
    wire = text.encode()
    for start, end, byte_start, byte_end, special, of_prompt in zip(*fields[1:], strict=True):
        assert 0 <= start <= end <= len(text)
        assert wire[byte_start:byte_end].decode() == text[start:end]
        if special or of_prompt:
            assert (start, end) == (0, 0)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", NAMES)
async def test_tokens_are_those_of_the_library(service: Service, name: str, special: bool) -> None:  # noqa: FBT001 - a parameter
    """Ids, vocabulary entries and places are the library's, for every kind of text."""
    library = _library(name)
    texts = list(TEXTS.values())
    found = await tokenize(service.client, *texts, model=name, omit_special_tokens=not special)
    counted = await count(service.client, *texts, model=name, omit_special_tokens=not special)
    for text, tokenized, number in zip(texts, found, counted.token_counts, strict=True):
        expected = library.encode(text, add_special_tokens=special)
        assert list(tokenized.ids) == expected.ids, text
        # Unlike `expected.tokens`, which shows the part of the text for an unknown token.
        assert list(tokenized.tokens) == [library.id_to_token(one) for one in expected.ids]
        assert list(zip(tokenized.character_starts, tokenized.character_ends, strict=True)) == (
            expected.offsets
        )
        assert number == len(expected.ids)
        check_places(text, tokenized)
        added = len(expected.ids) - len(library.encode(text, add_special_tokens=False).ids)
        assert sum(tokenized.special) == added
    assert counted.total_tokens == sum(counted.token_counts)
    model = await service.client.models.GetModel(models.GetModelRequest(model=name))
    assert counted.max_tokens == model.model.max_tokens


@pytest.mark.parametrize("name", NAMES)
async def test_long_texts_are_tokenized_as_a_whole(service: Service, name: str) -> None:
    """Tokens and places are the same in pieces as in one go; else the text is too long."""
    unit = "some words, \u4e2d\u6587\u3002 and na\u00efve \U0001f600 emoji "
    text = unit * (200_000 // len(unit))
    if name in UNCUT:
        failure = await failure_of(tokenize(service.client, text, model=name))
        assert (failure.reason, failure.label) == ("INPUT_TOO_LONG", "CHARACTERS")
        return
    expected = _library(name).encode(text, add_special_tokens=True)
    (found,) = await tokenize(service.client, text, model=name)
    assert list(found.ids) == expected.ids
    assert list(found.character_ends) == [end for _, end in expected.offsets]
    for ours, (theirs, _) in zip(found.character_starts, expected.offsets, strict=True):
        # The first token of a piece may begin with the blank that the library leaves out.
        assert ours == theirs or text[ours:theirs] == " "
    check_places(text, found)
    counted = await count(service.client, text, text[:100], model=name)
    assert counted.token_counts[0] == len(expected.ids)


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, ""),
        ({"input_type": common.INPUT_TYPE_UNSPECIFIED}, ""),
        ({"input_type": common.INPUT_TYPE_QUERY}, QUERY_PROMPT),
        ({"input_type": common.INPUT_TYPE_DOCUMENT}, ""),
        ({"prompt_name": "query"}, QUERY_PROMPT),
        ({"prompt_text": "\u4e2d\u6587 \U0001f600: "}, "\u4e2d\u6587 \U0001f600: "),
        ({"prompt_text": ""}, ""),
    ],
)
@pytest.mark.parametrize("text", ["", "hello \U0001f600 world"])
async def test_prompts_stand_in_front(
    service: Service, options: dict[str, Any], prompt: str, text: str
) -> None:
    """Tokens of the prompt are marked; places count from the start of the text."""
    expected = _library("qwen3-last").encode(prompt + text)
    (found,) = await tokenize(service.client, text, model="qwen3-last", **options)
    assert list(found.ids) == expected.ids
    check_places(text, found)
    for (start, end), has_special, of_prompt, start_here, end_here in zip(
        expected.offsets,
        found.special,
        found.of_prompt,
        found.character_starts,
        found.character_ends,
        strict=True,
    ):
        if has_special:
            continue
        assert of_prompt == (end <= len(prompt) and bool(prompt))
        if not of_prompt:
            assert (start_here, end_here) == (max(start - len(prompt), 0), end - len(prompt))
    counted = await count(service.client, text, model="qwen3-last", **options)
    assert list(counted.token_counts) == [len(expected.ids)]


OPTIONS = {
    "no texts": ({"texts": []}, "NO_INPUTS", "texts"),
    "too many texts": ({"texts": ["a"] * (MAX_INPUTS + 1)}, "TOO_MANY_INPUTS", "texts"),
    "unknown role": (
        {"texts": ["a"], "options": pb.TokenizeOptions(input_type=77)},  # type: ignore[arg-type]
        "UNKNOWN_ENUM_VALUE",
        "options.input_type",
    ),
    "no prompt name": (
        {"texts": ["a"], "options": pb.TokenizeOptions(prompt_name="")}, "", "options.prompt_name",
    ),
    "long prompt": (
        {"texts": ["a"], "options": pb.TokenizeOptions(prompt_text="p" * 8193)},
        "",
        "options.prompt_text",
    ),
    "long model": ({"texts": ["a"], "model": "m" * 129}, "", "model"),
}  # fmt: skip


@pytest.mark.parametrize("row", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("method", ["Tokenize", "CountTokens"])
async def test_bad_requests_are_refused(
    service: Service, method: str, row: tuple[dict[str, Any], str, str]
) -> None:
    """Both methods check alike, and name the field."""
    fields, label, field = row
    request = getattr(pb, f"{method}Request")(**fields)
    failure = await failure_of(getattr(service.client.tokenizer, method)(request))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.reason, failure.label) == ("INVALID_REQUEST", label)
    assert failure.fields == (field,)


async def test_limits_are_exact(service: Service) -> None:
    """As many texts, and as long a prompt, as the limits say are accepted."""
    texts = ["a"] * MAX_INPUTS
    assert len(await tokenize(service.client, *texts, model="bert-cls")) == MAX_INPUTS
    assert await tokenize(service.client, "a", model="bert-cls", prompt_text="p" * 8192)
    failure = await failure_of(count(service.client, "a", model="bert-cls", prompt_name="none"))
    assert (failure.reason, failure.fields) == ("UNSUPPORTED", ("options.prompt_name",))


async def test_a_large_response_is_refused(service: Service) -> None:
    """The client's limit counts, from the field and from the metadata; the field wins."""
    request = pb.TokenizeRequest(model="bert-cls", texts=["a word"] * 16)
    whole = await service.client.tokenizer.Tokenize(request, timeout=PATIENCE_S)
    small = whole.ByteSize() - 1
    request.max_response_bytes = small
    failure = await failure_of(service.client.tokenizer.Tokenize(request))
    assert (failure.code, failure.label) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "RESPONSE_TOO_LARGE",
    )
    metadata = (("embedgrpc-max-response-bytes", str(small)),)
    request.max_response_bytes = 100_000
    assert await service.client.tokenizer.Tokenize(request, metadata=metadata) == whole
    request.max_response_bytes = 0
    failure = await failure_of(service.client.tokenizer.Tokenize(request, metadata=metadata))
    assert failure.label == "RESPONSE_TOO_LARGE"
    request.max_response_bytes = -1
    failure = await failure_of(service.client.tokenizer.Tokenize(request))
    assert failure.fields == ("max_response_bytes",)


async def test_a_text_that_cannot_be_cut_has_a_limit(cache_dir: Path) -> None:
    """The error has the limit that the model states; a text of just that length passes."""
    served = ModelSettings(id="one", source=str(FIXTURES / "gemma-dense"))
    async with serving(settings_for(served, cache_dir=cache_dir)) as started:
        found = await started.client.models.GetModel(models.GetModelRequest(model="one"))
        limit = found.model.limits.max_text_characters
        text = "\u0e01" * limit
        assert (await count(started.client, text)).total_tokens
        failure = await failure_of(count(started.client, "a", text + "\u0e01"))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.reason, failure.label) == ("INPUT_TOO_LONG", "CHARACTERS")
    assert failure.fields == ("texts[1]",)
    assert failure.metadata["maxCharacters"] == str(limit)
    assert failure.metadata["characters"] == str(limit + 1)


@pytest.mark.parametrize("method", ["Tokenize", "CountTokens"])
async def test_a_late_call_and_one_that_left_leave_nothing(service: Service, method: str) -> None:
    """A deadline in the middle is DEADLINE_EXCEEDED; what was not tokenized is dropped."""
    text = "some words, and more. " * 40_000
    request = getattr(pb, f"{method}Request")(model="bert-cls", texts=[text] * 4)
    call = getattr(service.client.tokenizer, method)
    failure = await failure_of(call(request, timeout=0.05))
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not len(service.server.open_calls))
    left = call(request, timeout=PATIENCE_S)
    await until(lambda: len(service.server.open_calls))
    left.cancel()
    await until(lambda: not len(service.server.open_calls))
    assert (await count(service.client, "a text", model="bert-cls")).total_tokens


async def test_models_that_tokenize_on_their_own_are_refused(cache_dir: Path) -> None:
    """A text model of Triton has no tokenizer here."""
    with KServeServer() as server:
        server.inputs = [("TEXT", "BYTES")]
        async with serving(settings_for(settings_of(server.address), cache_dir=cache_dir)) as one:
            for call in (tokenize, count):
                failure = await failure_of(call(one.client, "a"))
                assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
                assert (failure.reason, failure.fields) == ("UNSUPPORTED", ("model",))


async def test_cross_encoders_tokenize_too(service: Service) -> None:
    """Their texts have the special tokens of a single text."""
    assert CROSS.source.endswith("cross-bert")
    (found,) = await tokenize(service.client, "a b", model="cross-bert")
    assert list(found.special) == [True, False, False, True]
