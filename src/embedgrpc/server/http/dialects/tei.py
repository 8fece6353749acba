"""The HTTP API of text-embeddings-inference.

Source: its OpenAPI description and `router/src/http`, for statuses, bodies and quirks.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import msgspec

from embedgrpc.engine.errors import EngineError, InvalidRequestError, Reason
from embedgrpc.engine.results.vectors import Encoding, encode
from embedgrpc.models.kinds import Truncation
from embedgrpc.server.caller import Need, Service
from embedgrpc.server.contract.words import read_truncation
from embedgrpc.server.http.dialects.answers import ModelInfo, Vectors
from embedgrpc.server.http.exchange import Answer, Exchange, Route, to_json
from embedgrpc.server.http.failures import error_form, shown_message
from embedgrpc.server.http.fields import (
    Dimensions,
    OneText,
    PromptName,
    TeiNormalize,
    TeiTruncate,
    TruncationDirection,
)
from embedgrpc.server.http.rows import dense_of, number_lists
from embedgrpc.server.http.work import JSON_COPIES, embed
from embedgrpc.server.loading.catalog import LoadedModel
from embedgrpc.server.services.embed_batch import EmbeddedBatch
from embedgrpc.v1 import common_pb2, embedding_service_pb2

TAG = "text-embeddings-inference"
_FIELDS = {"options.": "", "texts": "inputs"}
# Its own statuses where they differ from ours, and the names of its kinds of errors.
_ERRORS: Mapping[Reason, tuple[int | None, str]] = {
    Reason.INVALID_REQUEST: (422, "Validation"),
    Reason.INPUT_TOO_LONG: (422, "Validation"),
    Reason.EMPTY_INPUT: (400, "Empty"),
    Reason.UNSUPPORTED: (422, "Validation"),
    Reason.MODEL_NOT_FOUND: (None, "Validation"),
    Reason.OVERLOADED: (None, "Overloaded"),
    Reason.RATE_LIMITED: (None, "Overloaded"),
    Reason.BACKEND_UNAVAILABLE: (None, "Unhealthy"),
    Reason.SHUTTING_DOWN: (None, "Unhealthy"),
    Reason.BACKEND_FAILED: (424, "Backend"),
    Reason.NON_FINITE_OUTPUT: (424, "Backend"),
}
# The same for some labels of errors.
_LABELS: Mapping[str, tuple[int, str]] = {
    "NO_INPUTS": (400, "Empty"),
    "WRONG_TASK": (424, "Backend"),
}


class EmbedRequest(msgspec.Struct):
    """The body of POST /embed."""

    inputs: OneText
    truncate: TeiTruncate = None
    truncation_direction: TruncationDirection = None
    prompt_name: PromptName = None
    normalize: TeiNormalize = None
    dimensions: Dimensions = None


class TeiError(msgspec.Struct):
    """An error in the form of text-embeddings-inference."""

    error: str
    error_type: str


@error_form(TeiError)
def tei_error(error: EngineError, status: int) -> tuple[int, bytes]:
    """Write an error as text-embeddings-inference does."""
    of_reason = _ERRORS.get(error.reason, (None, "Backend"))
    own, kind = _LABELS.get(error.metadata.get("label", ""), of_reason)
    # Statuses of HTTP itself, such as 404 or 413, stay.
    chosen = own if own and status in {400, 500} else status
    return chosen, msgspec.json.encode(TeiError(shown_message(error), kind))


async def embed_texts(exchange: Exchange) -> Answer:
    """Embed texts; the answer is a bare list of vectors."""
    return await embed_body(exchange, exchange.body)


async def embed_body(exchange: Exchange, body: EmbedRequest) -> Answer:
    """Embed the texts of a body."""
    options = embedding_service_pb2.EmbedOptions(
        truncation=as_truncation(body.truncate, body.truncation_direction),
        # Other than the contract, it normalises by default whatever the model does.
        normalize=body.normalize is not False,
        dimensions=body.dimensions or 0,
    )
    texts = _read_texts(body.inputs)
    return await embed_by(exchange, texts, options, prompt_name=body.prompt_name, pack=_pack)


async def embed_by(
    exchange: Exchange,
    texts: str | Sequence[str],
    options: embedding_service_pb2.EmbedOptions,
    *,
    prompt_name: str | None,
    pack: Callable[[EmbeddedBatch], bytes],
    field: str = "inputs",
    copies: float = JSON_COPIES,
) -> Answer:
    """Embed a text or several with the model of this API, by a prompt if the body names one.

    The other arguments are those of `work.embed`.
    """
    if prompt_name is not None:
        options.prompt_name = prompt_name
    return Answer(
        await embed(
            exchange,
            [texts] if isinstance(texts, str) else texts,
            options,
            model=None,
            default=default_model(exchange),
            field=field,
            copies=copies,
            pack=pack,
        )
    )


def default_model(exchange: Exchange) -> str:
    """Return the model of requests that name none; empty for the server's default."""
    return exchange.served.settings.tei_model


def as_truncation(truncate: bool | None, direction: str | None) -> common_pb2.Truncation:  # noqa: FBT001 - as JSON has it
    """Return the contract's truncation; by default texts are cut, as with its `--auto-truncate`."""
    if truncate is False:
        return common_pb2.TRUNCATION_NONE
    if direction is not None:
        return read_truncation(direction, field="truncation_direction")
    return common_pb2.TRUNCATION_END if truncate else common_pb2.TRUNCATION_UNSPECIFIED


def _read_texts(value: str | list[str | int | list[int]]) -> list[str]:
    if isinstance(value, str):
        return [value]
    texts = [one for one in value if isinstance(one, str)]
    if len(texts) != len(value):
        raise InvalidRequestError("inputs has token ids; send texts", field="inputs")
    return texts


def _pack(embedded: EmbeddedBatch) -> bytes:
    return number_lists(encode(dense_of(embedded), Encoding.FLOAT32).data)


async def info(exchange: Exchange) -> Answer:
    """Describe the default model and the limits."""
    settings = exchange.served.settings
    served = exchange.find_model(None, default=default_model(exchange))
    loaded = served.ready()
    return to_json(
        {
            "model_id": served.id,
            "model_sha": loaded.revision or None,
            "model_dtype": loaded.weight_type,
            "served_model_name": served.id,
            "model_type": _type_of(loaded),
            "max_concurrent_requests": settings.max_calls,
            "max_input_length": loaded.properties.max_tokens,
            "max_batch_tokens": loaded.scheduler.budget.tokens,
            "max_batch_requests": loaded.scheduler.budget.sequences,
            "max_client_batch_size": settings.max_inputs,
            "auto_truncate": served.default_truncation is not Truncation.NONE,
            "tokenization_workers": settings.tokenizer_threads,
            "version": version("embedgrpc"),
            "sha": None,
            "docker_label": None,
        }
    )


def _type_of(loaded: LoadedModel) -> Mapping[str, object]:
    if loaded.embedder is not None:
        return {"embedding": {"pooling": ",".join(loaded.properties.poolings) or "splade"}}
    kind = "classifier" if loaded.reranker is None else "reranker"
    labels = loaded.properties.labels or ("LABEL_0",)
    return {
        kind: {
            "id2label": {str(index): label for index, label in enumerate(labels)},
            "label2id": {label: index for index, label in enumerate(labels)},
        }
    }


ROUTES = (
    Route(
        "GET",
        "/info",
        info,
        tei_error,
        "Describe the model",
        TAG,
        ModelInfo,
        need=Need(Service.MODELS),
    ),
    Route(
        "POST",
        "/embed",
        embed_texts,
        tei_error,
        "Embed texts",
        TAG,
        Vectors,
        body=EmbedRequest,
        example={"inputs": ["It is red.", "Rivers flow to the sea."]},
        key="inputs",
        fields=_FIELDS,
        need=Need(Service.EMBED),
    ),
)
