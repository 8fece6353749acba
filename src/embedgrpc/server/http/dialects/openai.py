"""OpenAI's embeddings and models.

Source: the OpenAI API reference, and what its Python and Node clients send and parse. Both ask for
base64 by default, and the one for Node decodes whatever comes as such.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import orjson

from embedgrpc.engine.errors import EngineError, InvalidRequestError, Reason
from embedgrpc.engine.results.vectors import EncodedRows, encode
from embedgrpc.engine.tokenizing.texts import TextOrIds
from embedgrpc.server.caller import Need, Service
from embedgrpc.server.contract.words import (
    read_encoding,
    read_input_type,
    read_truncation,
    read_word,
)
from embedgrpc.server.http.dialects.answers import EmbeddingsAnswer, ModelItem, ModelsAnswer
from embedgrpc.server.http.exchange import Answer, Exchange, Route, to_json
from embedgrpc.server.http.failures import error_form, shown_message
from embedgrpc.server.http.fields import (
    Dimensions,
    InputType,
    Model,
    Normalize,
    PromptName,
    TextsOrIds,
    Truncate,
    about,
)
from embedgrpc.server.http.numbers import Int32
from embedgrpc.server.http.rows import base64_rows, dense_of, number_rows
from embedgrpc.server.http.work import BASE64_COPIES, JSON_COPIES, embed
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.services.embed_batch import EmbeddedBatch
from embedgrpc.v1 import embedding_service_pb2

_TAG = "OpenAI"
_FORMATS = {"float": 0, "base64": 1}
_FIELDS = {"options.": "", "texts": "input"}
_TYPES: Mapping[Reason, str] = {
    Reason.OVERLOADED: "rate_limit_error",
    Reason.RATE_LIMITED: "rate_limit_error",
    Reason.UNAUTHENTICATED: "authentication_error",
    Reason.PERMISSION_DENIED: "permission_error",
}
_CLIENT_ERROR_MAX = 499
# So many entries are looked at in a millisecond.
_ENTRIES_AT_ONCE = 65_536


class EmbeddingsRequest(msgspec.Struct):
    """The body of POST /v1/embeddings. The keys after `user` are extensions."""

    input: Annotated[
        str | TextsOrIds,
        about("A text, or a list of texts. Token ids are refused unless openai_token_ids is set."),
    ]
    model: Model = None
    encoding_format: Annotated[
        str | None,
        about(
            "float for numbers; base64 for the bytes of little-endian float32.",
            enum=[*_FORMATS, None],
            default="float",
        ),
    ] = None
    dimensions: Dimensions = None
    user: Annotated[str | None, about("Accepted, and has no effect.")] = None
    input_type: InputType = None
    prompt_name: PromptName = None
    truncate: Truncate = None
    truncate_prompt_tokens: Annotated[
        Int32 | None,
        about("Cut each text to so many tokens; below 0 means the model's own limit.", minimum=-1),
    ] = None
    normalize: Normalize = None
    encoding: Annotated[
        str | None,
        about(
            "The number format of the vectors.",
            enum=["float32", "float16", "bfloat16", "int8", "ubinary", None],
            default="float32",
        ),
    ] = None


class ErrorDetail(msgspec.Struct):
    """What is wrong. `code` is the reason, `param` the key at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct):
    """An error in OpenAI's form."""

    error: ErrorDetail


@error_form(ErrorAnswer)
def openai_error(error: EngineError, status: int) -> tuple[int, bytes]:
    """Write an error in OpenAI's form."""
    default = "invalid_request_error" if status <= _CLIENT_ERROR_MAX else "server_error"
    detail = ErrorDetail(
        message=shown_message(error),
        type=_TYPES.get(error.reason, default),
        param=error.field or None,
        code=error.reason.value.lower(),
    )
    return status, msgspec.json.encode(ErrorAnswer(detail))


async def embeddings(exchange: Exchange) -> Answer:
    """Embed texts."""
    body: EmbeddingsRequest = exchange.body
    as_base64 = read_word(body.encoding_format or "float", _FORMATS, field="encoding_format") == 1
    answer = await embed(
        exchange,
        await _read_inputs(body.input, exchange),
        read_options(body),
        model=body.model or "",
        field="input",
        copies=BASE64_COPIES if as_base64 else JSON_COPIES,
        pack=_pack_base64 if as_base64 else _pack_floats,
    )
    return Answer(answer)


async def _read_inputs(
    value: str | list[str | int | list[int]], exchange: Exchange
) -> Sequence[TextOrIds]:
    """Return the texts of a request, or the token ids of some where the settings allow them.

    Raises:
        InvalidRequestError: It has token ids, or inputs of several kinds.
    """
    if isinstance(value, str):
        return [value]
    few = len(value) <= _ENTRIES_AT_ONCE
    kinds = _kinds_of(value) if few else await asyncio.to_thread(_kinds_of, value)
    if kinds <= {str}:
        return value  # type: ignore[return-value] # all are texts
    if exchange.served.settings.openai_token_ids == "refuse":  # noqa: S105 - no password
        raise _ids_refused()
    if kinds == {int}:
        return [value]  # type: ignore[list-item] # all are ids
    if kinds == {list}:
        return value  # type: ignore[return-value] # all are lists of ids
    raise InvalidRequestError(
        "input must be a string, a list of strings, a list of token ids, or a list of such lists",
        field="input",
    )


def _kinds_of(value: Sequence[object]) -> set[type]:
    """Return the types of the entries."""
    kinds: set[type] = set()
    for start in range(0, len(value), _ENTRIES_AT_ONCE):
        # A slice at a time, because no other thread runs meanwhile.
        kinds.update(map(type, value[start : start + _ENTRIES_AT_ONCE]))
    return kinds


def read_texts(value: str | list[str | int | list[int]]) -> list[str]:
    """Return the texts of a request.

    Raises:
        InvalidRequestError: It has token ids.
    """
    if isinstance(value, str):
        return [value]
    texts = [one for one in value if isinstance(one, str)]
    if len(texts) != len(value):
        raise _ids_refused()
    return texts


def _ids_refused() -> InvalidRequestError:
    return InvalidRequestError(
        "input must be a string or a list of strings. Token ids are not accepted, because"
        " clients make them with OpenAI's tokenizer and not with that of the model; for"
        " LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False",
        field="input",
    )


def read_options(body: EmbeddingsRequest) -> embedding_service_pb2.EmbedOptions:
    """Return the options of a request in the contract's terms."""
    options = embedding_service_pb2.EmbedOptions(
        dimensions=body.dimensions or 0,
        truncation=read_truncation(body.truncate),
        encoding=read_encoding(body.encoding),
    )
    if body.dimensions is not None and body.dimensions < 1:
        raise InvalidRequestError(
            f"dimensions is {body.dimensions}; it must be at least 1", field="dimensions"
        )
    if body.prompt_name is not None:
        options.prompt_name = body.prompt_name
    elif body.input_type is not None:
        options.input_type = read_input_type(body.input_type)
    if body.normalize is not None:
        options.normalize = body.normalize
    if body.truncate_prompt_tokens is not None and body.truncate_prompt_tokens >= 0:
        options.max_tokens = body.truncate_prompt_tokens
    return options


def _pack_base64(embedded: EmbeddedBatch) -> bytes:
    rows = encode(dense_of(embedded), embedded.encoding)
    return _join(embedded, rows, base64_rows(rows.data))


def _pack_floats(embedded: EmbeddedBatch) -> bytes:
    rows = encode(dense_of(embedded), embedded.encoding)
    return _join(embedded, rows, number_rows(rows.data))


def _join(embedded: EmbeddedBatch, rows: EncodedRows, vectors: Iterable[bytes]) -> bytes:
    """Return the response around vectors that are JSON already."""
    scales = [b""] * len(rows.data)
    if rows.scales is not None:
        scales = [b',"scale":' + orjson.dumps(scale) for scale in rows.scales.tolist()]
    items = (
        b'{"object":"embedding","index":%d,"embedding":%s%s}' % (index, vector, scale)
        for index, (vector, scale) in enumerate(zip(vectors, scales, strict=True))
    )
    tokens = embedded.input_tokens
    return (
        b'{"object":"list","data":[%s],"model":%s,'
        b'"usage":{"prompt_tokens":%d,"total_tokens":%d},"fingerprint":"%s"}'
    ) % (
        b",".join(items),
        msgspec.json.encode(embedded.served.id),
        tokens,
        tokens,
        embedded.loaded.fingerprint.encode(),
    )


async def list_models(exchange: Exchange) -> Answer:
    """List the models."""
    data = [_describe(one, exchange) for one in exchange.served.catalog.usable()]
    return to_json({"object": "list", "data": data})


async def get_model(exchange: Exchange) -> Answer:
    """Describe one model."""
    return to_json(_describe(exchange.served.catalog.find(exchange.argument), exchange))


def _describe(model: ServedModel, exchange: Exchange) -> Mapping[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": exchange.served.started_at,
        "owned_by": "embedgrpc",
    }


ROUTES = (
    *(
        Route(
            "POST",
            path,
            embeddings,
            openai_error,
            "Embed texts",
            _TAG,
            EmbeddingsAnswer,
            body=EmbeddingsRequest,
            example={"input": ["It is red.", "Rivers flow to the sea."]},
            key="input",
            fields=_FIELDS,
            need=Need(Service.EMBED),
        )
        for path in ("/v1/embeddings", "/embeddings")
    ),
    Route(
        "GET",
        "/v1/models",
        list_models,
        openai_error,
        "List the models",
        _TAG,
        ModelsAnswer,
        need=Need(Service.MODELS),
    ),
    Route(
        "GET",
        "/v1/models/{id}",
        get_model,
        openai_error,
        "Describe a model",
        _TAG,
        ModelItem,
        need=Need(Service.MODELS),
    ),
)
