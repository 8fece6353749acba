from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import model_service_pb2 as models
from embedgrpc.v1 import rerank_service_pb2 as rerank
from tests.server.failures import failure_of
from tests.server.service import CROSS, EMBED, PATIENCE_S, Service, serving, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNSUPPORTED = grpc.StatusCode.FAILED_PRECONDITION
UNKNOWN_ENUM = 77
HUGE = "word " * 200_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """One server for the whole table: every row must leave it working."""
    embed = EMBED.model_copy(update={"prompts": {"query": "q: ", "document": "d: "}})
    settings = settings_for(embed, CROSS, cache_dir=cache_dir, max_inputs=8)
    async with serving(settings) as started:
        yield started


def _embed(*texts: str, model: str = "", **options: Any) -> embedding.EmbedRequest:
    return embedding.EmbedRequest(
        model=model, texts=texts or ["a text"], options=embedding.EmbedOptions(**options)
    )


def _rerank(
    query: str = "a query",
    documents: Sequence[str] = ("one", "two"),
    model: str = "",
    **options: Any,
) -> rerank.RerankRequest:
    return rerank.RerankRequest(
        model=model,
        query=query,
        documents=documents,
        options=rerank.RerankOptions(**options),
    )


EMBED_ROWS: dict[str, tuple[embedding.EmbedRequest, grpc.StatusCode, str, str, str]] = {
    "no texts": (
        embedding.EmbedRequest(), INVALID, "INVALID_REQUEST", "NO_INPUTS", "texts",
    ),
    "too many texts": (
        _embed(*["a"] * 9), INVALID, "INVALID_REQUEST", "TOO_MANY_INPUTS", "texts",
    ),
    "empty text": (_embed("a", ""), INVALID, "EMPTY_INPUT", "", "texts[1]"),
    "white space": (
        _embed("\t \n\u3000\u00a0\u2028"), INVALID, "EMPTY_INPUT", "", "texts[0]",
    ),
    "zero width": (
        _embed("a", "\u200b\u200d\u2060\ufeff"), INVALID, "EMPTY_INPUT", "", "texts[1]",
    ),
    "NUL alone": (_embed("\0"), INVALID, "EMPTY_INPUT", "", "texts[0]"),
    "megabytes of control characters": (
        _embed("\x01" * 3_000_000), INVALID, "EMPTY_INPUT", "", "texts[0]",
    ),
    "too many characters": (
        _embed("a", HUGE, truncation=common.TRUNCATION_NONE),
        INVALID, "INPUT_TOO_LONG", "CHARACTERS", "texts[1]",
    ),
    "too many tokens": (
        _embed("a", "a " * 200, truncation=common.TRUNCATION_NONE),
        INVALID, "INPUT_TOO_LONG", "TOKENS", "texts[1]",
    ),
    "too many tokens for the caller": (
        _embed("a a a a", truncation=common.TRUNCATION_NONE, max_tokens=5),
        INVALID, "INPUT_TOO_LONG", "TOKENS", "texts[0]",
    ),
    "no room for special tokens": (
        _embed("a", max_tokens=2), INVALID, "INVALID_REQUEST", "", "options.max_tokens",
    ),
    "unknown model": (
        _embed(model="nobody"),
        grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "", "model",
    ),
    "model name with a line break": (
        _embed(model="embed\n"),
        grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "", "model",
    ),
    "model name too long": (_embed(model="m" * 129), INVALID, "INVALID_REQUEST", "", "model"),
    "unknown encoding": (
        _embed(encoding=UNKNOWN_ENUM),
        INVALID, "INVALID_REQUEST", "UNKNOWN_ENUM_VALUE", "options.encoding",
    ),
    "unknown truncation": (
        _embed(truncation=UNKNOWN_ENUM),
        INVALID, "INVALID_REQUEST", "UNKNOWN_ENUM_VALUE", "options.truncation",
    ),
    "unknown input type": (
        _embed(input_type=UNKNOWN_ENUM),
        INVALID, "INVALID_REQUEST", "UNKNOWN_ENUM_VALUE", "options.input_type",
    ),
    "negative enum value": (
        _embed(encoding=-1), INVALID, "INVALID_REQUEST", "UNKNOWN_ENUM_VALUE", "options.encoding",
    ),
    "unknown representation": (
        _embed(representations=[embedding.REPRESENTATION_DENSE, UNKNOWN_ENUM]),
        INVALID, "INVALID_REQUEST", "UNKNOWN_ENUM_VALUE", "options.representations[1]",
    ),
    "unspecified representation": (
        _embed(representations=[embedding.REPRESENTATION_UNSPECIFIED]),
        INVALID, "INVALID_REQUEST", "", "options.representations[0]",
    ),
    "representation asked for twice": (
        _embed(representations=[embedding.REPRESENTATION_DENSE] * 2),
        INVALID, "INVALID_REQUEST", "", "options.representations[1]",
    ),
    "sparse from a dense model": (
        _embed(representations=[embedding.REPRESENTATION_SPARSE]),
        UNSUPPORTED, "UNSUPPORTED", "", "options.representations[0]",
    ),
    "negative dimensions": (
        _embed(dimensions=-1), INVALID, "INVALID_REQUEST", "", "options.dimensions",
    ),
    "too many dimensions": (
        _embed(dimensions=37), INVALID, "INVALID_REQUEST", "", "options.dimensions",
    ),
    "negative max_tokens": (
        _embed(max_tokens=-1), INVALID, "INVALID_REQUEST", "", "options.max_tokens",
    ),
    "negative max_sparse_terms": (
        _embed(max_sparse_terms=-1), INVALID, "INVALID_REQUEST", "", "options.max_sparse_terms",
    ),
    "empty prompt name": (
        _embed(prompt_name=""), INVALID, "INVALID_REQUEST", "", "options.prompt_name",
    ),
    "prompt name too long": (
        _embed(prompt_name="p" * 129), INVALID, "INVALID_REQUEST", "", "options.prompt_name",
    ),
    "unknown prompt name": (
        _embed(prompt_name="nobody"),
        UNSUPPORTED, "UNSUPPORTED", "", "options.prompt_name",
    ),
    "prompt too long": (
        _embed(prompt_text="p" * 8193), INVALID, "INVALID_REQUEST", "", "options.prompt_text",
    ),
    "embedding with a cross-encoder": (
        _embed(model="cross"), UNSUPPORTED, "UNSUPPORTED", "WRONG_TASK", "model",
    ),
}  # fmt: skip

RERANK_ROWS: dict[str, tuple[rerank.RerankRequest, grpc.StatusCode, str, str, str]] = {
    "empty query": (_rerank(query=""), INVALID, "EMPTY_INPUT", "", "query"),
    "no documents": (
        _rerank(documents=[]), INVALID, "INVALID_REQUEST", "NO_INPUTS", "documents",
    ),
    "too many documents": (
        _rerank(documents=["d"] * 9), INVALID, "INVALID_REQUEST", "TOO_MANY_INPUTS", "documents",
    ),
    "empty document": (
        _rerank(documents=["d", "\u200b "]), INVALID, "EMPTY_INPUT", "", "documents[1]",
    ),
    "document too long": (
        _rerank(documents=["d", HUGE], truncation=common.TRUNCATION_NONE),
        INVALID, "INPUT_TOO_LONG", "CHARACTERS", "documents[1]",
    ),
    "query with too many tokens": (
        _rerank(query="a " * 200, truncation=common.TRUNCATION_NONE),
        INVALID, "INPUT_TOO_LONG", "TOKENS", "query",
    ),
    "pair with too many tokens": (
        _rerank(model="cross", documents=["d", "a " * 200], truncation=common.TRUNCATION_NONE),
        INVALID, "INPUT_TOO_LONG", "TOKENS", "documents[1]",
    ),
    "negative top_n": (_rerank(top_n=-1), INVALID, "INVALID_REQUEST", "", "options.top_n"),
    "negative max_tokens": (
        _rerank(max_tokens=-1),
        INVALID, "INVALID_REQUEST", "", "options.max_tokens",
    ),
    "unknown scale": (
        _rerank(score_scale=UNKNOWN_ENUM),
        INVALID, "INVALID_REQUEST", "UNKNOWN_ENUM_VALUE", "options.score_scale",
    ),
    "unknown truncation": (
        _rerank(truncation=UNKNOWN_ENUM),
        INVALID, "INVALID_REQUEST", "UNKNOWN_ENUM_VALUE", "options.truncation",
    ),
    "sigmoid of a similarity": (
        _rerank(score_scale=rerank.SCORE_SCALE_SIGMOID),
        UNSUPPORTED, "UNSUPPORTED", "", "options.score_scale",
    ),
    "instruction": (
        _rerank(model="cross", instruction="be kind"),
        UNSUPPORTED, "UNSUPPORTED", "", "options.instruction",
    ),
    "unknown model": (
        _rerank(model="nobody"),
        grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "", "model",
    ),
}  # fmt: skip

LIST_ROWS = {
    "negative page size": (models.ListModelsRequest(page_size=-1), "page_size"),
    "unknown task": (models.ListModelsRequest.FromString(b"\x18\x4d"), "task"),
    "no base64": (models.ListModelsRequest(page_token="no token!"), "page_token"),  # noqa: S106 - a page's token
    "no text": (models.ListModelsRequest(page_token="____"), "page_token"),  # noqa: S106 - a page's token
}


@pytest.mark.parametrize("row", EMBED_ROWS.values(), ids=EMBED_ROWS)
async def test_embed_refuses(
    service: Service, row: tuple[embedding.EmbedRequest, grpc.StatusCode, str, str, str]
) -> None:
    """A bad Embed is refused with its code, its reason and the field to blame; others go on."""
    request, code, reason, label, field = row
    failure = await failure_of(service.client.embedding.Embed(request, timeout=PATIENCE_S))
    assert (failure.code, failure.reason, failure.label) == (code, reason, label)
    assert failure.fields == (field,)
    assert failure.details
    await service.check_alive()


@pytest.mark.parametrize("row", RERANK_ROWS.values(), ids=RERANK_ROWS)
async def test_rerank_refuses(
    service: Service, row: tuple[rerank.RerankRequest, grpc.StatusCode, str, str, str]
) -> None:
    """A bad Rerank is refused with its code, its reason and the field to blame; others go on."""
    request, code, reason, label, field = row
    failure = await failure_of(service.client.rerank.Rerank(request, timeout=PATIENCE_S))
    assert (failure.code, failure.reason, failure.label) == (code, reason, label)
    assert failure.fields == (field,)
    assert failure.details
    await service.check_alive()


@pytest.mark.parametrize("row", LIST_ROWS.values(), ids=LIST_ROWS)
async def test_list_models_refuses(
    service: Service, row: tuple[models.ListModelsRequest, str]
) -> None:
    """A bad ListModels is refused, and the field named."""
    request, field = row
    failure = await failure_of(service.client.models.ListModels(request))
    assert (failure.code, failure.reason) == (INVALID, "INVALID_REQUEST")
    assert failure.fields == (field,)
    await service.check_alive()


async def test_get_model_refuses(service: Service) -> None:
    """GetModel requires the name of a served model."""
    failure = await failure_of(service.client.models.GetModel(models.GetModelRequest()))
    assert (failure.code, failure.reason) == (INVALID, "INVALID_REQUEST")
    assert failure.fields == ("model",)
    failure = await failure_of(service.client.models.GetModel(models.GetModelRequest(model="x")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert failure.fields == ("model",)
    await service.check_alive()


ENCODINGS = (
    "VECTOR_ENCODING_UNSPECIFIED (0), VECTOR_ENCODING_FLOAT32 (1), VECTOR_ENCODING_FLOAT16 (2),"
    " VECTOR_ENCODING_BFLOAT16 (3), VECTOR_ENCODING_INT8 (4), VECTOR_ENCODING_UBINARY (5)"
)
UNKNOWN_NAMES = {
    "model": (_embed(model="foo"), "no model 'foo'; served: embed, cross"),
    "odd model": (
        _embed(model="\u202ea\nb" + "n" * 100),
        r"no model '\u202ea\nb" + "n" * 54 + "...'; served: embed, cross",
    ),
    "prompt": (_embed(prompt_name="foo"), "the model has no prompt 'foo'; it has: query, document"),
    "enum": (_embed(encoding=77), f"options.encoding is 77; VectorEncoding has {ENCODINGS}"),
    "representation": (
        _embed(representations=[embedding.REPRESENTATION_SPARSE]),
        "the model does not return sparse; it returns: dense",
    ),
}


@pytest.mark.parametrize("row", UNKNOWN_NAMES.values(), ids=UNKNOWN_NAMES)
async def test_an_unknown_name_is_shown_with_those_that_exist(
    service: Service, row: tuple[embedding.EmbedRequest, str]
) -> None:
    """The error shows an unknown name, escaped and cut, and the names that exist."""
    request, message = row
    failure = await failure_of(service.client.embedding.Embed(request))
    assert failure.details == message


async def test_an_unknown_service_of_health_is_shown(service: Service) -> None:
    """The error of Check shows the unknown name and the services that exist."""
    failure = await failure_of(service.client.status("foo" + "\n" * 100))
    services = ("ModelService", "EmbeddingService", "RerankService")
    assert failure.details.startswith(
        "no service 'foo"
        + r"\n" * 30
        + "...'; there are: "
        + ", ".join(f"embedgrpc.v1.{name}" for name in services)
    )
    assert len(failure.details) < 600


async def test_models_are_listed_in_pages(service: Service) -> None:
    """Without a size one page holds all models; with one, each token leads to the next page."""
    everything = await service.client.models.ListModels(models.ListModelsRequest())
    assert [model.id for model in everything.models] == ["cross", "embed"]
    assert not everything.next_page_token
    token, ids = "", []
    for _ in range(2):
        request = models.ListModelsRequest(page_size=1, page_token=token)
        page = await service.client.models.ListModels(request)
        ids += [model.id for model in page.models]
        token = page.next_page_token
    assert (ids, token) == (["cross", "embed"], "")


async def test_limits_that_are_too_large_mean_the_largest(service: Service) -> None:
    """`max_tokens`, `top_n` and `page_size` may be larger than the model or the list."""
    most = 2**31 - 1
    plain = await service.client.embed("a text")
    assert (await service.client.embedding.Embed(_embed(max_tokens=most))) == plain
    ranking = await service.client.rerank.Rerank(_rerank(top_n=most))
    assert len(ranking.results) == 2
    listing = await service.client.models.ListModels(models.ListModelsRequest(page_size=most))
    assert [model.id for model in listing.models] == ["cross", "embed"]


async def test_a_message_never_repeats_a_value_at_length(service: Service) -> None:
    """An error stays short for huge values: clients do not see statuses above 16 KB."""
    request = _embed("a", prompt_text="p" * 1_000_000)
    failure = await failure_of(service.client.embedding.Embed(request))
    assert len(failure.details) < 200
    assert len(failure.trailing) < 4096
