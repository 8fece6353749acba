"""The unary calls: the request of each, and how its response is decoded. No I/O."""

import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from grpc_health.v1 import health_pb2
from typing_extensions import Unpack

from embedgrpc.client.channel import Stubs
from embedgrpc.client.classifications import Classifications, decode_classifications
from embedgrpc.client.decoding import decode_embeddings, decode_partial, decode_ranking
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.client.enums import Task, enum_value
from embedgrpc.client.errors import (
    BadResponseError,
    EmbedGrpcError,
    InputTooLongError,
    MessageTooLargeError,
)
from embedgrpc.client.inputs import ClassifyInputs, valid_inputs, valid_text, valid_texts
from embedgrpc.client.model_description import Model, decode_model
from embedgrpc.client.options import (
    ClassifyOptions,
    EmbedOptions,
    RerankOptions,
    TokenizeOptions,
    classify_options,
    embed_options,
    option_texts,
    rerank_options,
    tokenize_options,
)
from embedgrpc.client.request_limit import RequestLimit
from embedgrpc.client.result_types import Embeddings, PartialEmbeddings, Ranking
from embedgrpc.client.server_description import Server, decode_server
from embedgrpc.client.server_status import (
    ModelStatus,
    ServerStatus,
    decode_model_status,
    decode_status,
)
from embedgrpc.client.tokens import TokenCounts, TokenizedText, decode_token_counts, decode_tokens
from embedgrpc.v1 import (
    admin_service_pb2,
    classify_service_pb2,
    model_service_pb2,
    rerank_service_pb2,
    tokenizer_service_pb2,
)
from embedgrpc.v1 import embedding_service_pb2 as pb

ResultT = TypeVar("ResultT")

_PAGES_MAX: Final = 1000
_EMBED_STREAM: Final = "encode or embed_stream"


class HealthStatus(str, enum.Enum):
    """The status of a service of the server."""

    UNKNOWN = "UNKNOWN"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"

    # As `enum.StrEnum`, which Python 3.10 lacks.
    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[ResultT]):
    """One unary call.

    Attributes:
        method: Returns the method of the call among the stubs.
        request: The message to send; None where nothing is left to ask.
        decode: Turns the response into the result of the call; None stands for an empty one.
        texts: Every part of the request of unlimited length, by the name of its argument.
        build: Makes the call anew, without the inputs that are too long by now; None where inputs
            cannot fail alone.
        stream: The methods that take any number of inputs; "" where there are none.
    """

    method: Callable[[Stubs], Any]
    request: Any
    decode: Callable[[Any], ResultT]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    build: "Callable[[], UnaryCall[ResultT]] | None" = None
    stream: str = ""

    def explained(self, error: EmbedGrpcError) -> EmbedGrpcError:
        """Return the error of this call; tell what takes more inputs where it has too many."""
        too_many = error.label == "TOO_MANY_INPUTS" or isinstance(error, MessageTooLargeError)
        if self.stream and too_many:
            error.message += f": use {self.stream} for any number of inputs"
            error.args = (error.message,)
        return error

    def smaller(self, error: EmbedGrpcError) -> "UnaryCall[ResultT] | None":
        """Return the call without the inputs that are too long; None if that changes nothing.

        Args:
            error: The error of this call, from which the client learned the server's limit.
        """
        if self.build is None or not isinstance(error, InputTooLongError):
            return None
        rebuilt = self.build()
        if rebuilt.request is None or rebuilt.request.ByteSize() < self.request.ByteSize():
            return rebuilt
        return None


def embed_call(
    texts: Iterable[str], model: str, **options: Unpack[EmbedOptions]
) -> UnaryCall[Embeddings]:
    """Return the call of Embed.

    Raises:
        TypeError: A text or an option has the wrong type.
        ValueError: A text is not valid Unicode, or an option is out of range.
    """
    valid = valid_texts("texts", texts)
    return UnaryCall(
        lambda stubs: stubs.embedding.Embed,
        _embed_request(valid, model, allow_partial=False, **options),
        functools.partial(decode_embeddings, text_count=len(valid)),
        {"texts": valid, "model": model} | option_texts(options),
        stream=_EMBED_STREAM,
    )


def partial_embed_call(
    texts: Iterable[str], model: str, limit: RequestLimit, **options: Unpack[EmbedOptions]
) -> UnaryCall[PartialEmbeddings]:
    """Return the call of Embed where texts may fail alone; errors as `embed_call`.

    Texts that no request has room for are not sent.
    """
    valid = valid_texts("texts", texts)
    unsent = limit.too_long("texts", valid)
    sent = [index for index in range(len(valid)) if index not in unsent]
    sent_texts = [valid[index] for index in sent]
    sent_options = options.copy()
    spans = options.get("chunk_spans")
    if spans is not None and len(spans) == len(valid):
        sent_options["chunk_spans"] = [spans[index] for index in sent]
    request = _embed_request(sent_texts, model, allow_partial=True, **sent_options)
    return UnaryCall(
        lambda stubs: stubs.embedding.Embed,
        request if sent or not unsent else None,
        lambda response: decode_partial(response or pb.EmbedResponse(), sent, unsent),
        {"texts": sent_texts, "model": model} | option_texts(options),
        lambda: partial_embed_call(valid, model, limit, **options),
        _EMBED_STREAM,
    )


def rerank_call(
    query: str,
    documents: Iterable[str],
    model: str,
    limit: RequestLimit,
    *,
    allow_partial: bool,
    **options: Unpack[RerankOptions],
) -> UnaryCall[Ranking]:
    """Return the call of Rerank.

    With `allow_partial`, documents that no request has room for are not sent.

    Raises:
        TypeError: A text or an option has the wrong type.
        ValueError: A text is not valid Unicode, or an option is out of range.
    """
    valid = valid_texts("documents", documents)
    unsent = limit.too_long("documents", valid) if allow_partial else {}
    sent = [index for index in range(len(valid)) if index not in unsent]
    sent_documents = [valid[index] for index in sent]
    request = rerank_service_pb2.RerankRequest(
        model=valid_text("model", model),
        query=valid_text("query", query),
        documents=sent_documents,
        options=rerank_options(**options),
        allow_partial=allow_partial,
        max_response_bytes=RESPONSE_BYTES_MAX,
    )

    def decode(response: rerank_service_pb2.RerankResponse | None) -> Ranking:
        response = response or rerank_service_pb2.RerankResponse()
        return decode_ranking(response, sent, unsent, response)

    return UnaryCall(
        lambda stubs: stubs.rerank.Rerank,
        request if sent or not unsent else None,
        decode,
        {"query": query, "documents": sent_documents, "model": model} | option_texts(options),
        functools.partial(
            rerank_call, query, valid, model, limit, allow_partial=allow_partial, **options
        )
        if allow_partial
        else None,
        "rank or rerank_stream",
    )


def classify_call(
    inputs: ClassifyInputs,
    model: str,
    limit: RequestLimit,
    *,
    allow_partial: bool,
    **options: Unpack[ClassifyOptions],
) -> UnaryCall[Classifications]:
    """Return the call of Classify.

    With `allow_partial`, inputs that no request has room for are not sent.

    Raises:
        TypeError: An input or an option has the wrong type, or texts and pairs are mixed.
        ValueError: A text is not valid Unicode, or an option is out of range.
    """
    texts, pairs = valid_inputs("inputs", inputs)
    # No request has room for half a pair.
    whole = [first + second for first, second in pairs] or texts
    unsent = limit.too_long("inputs", whole) if allow_partial else {}
    sent = [index for index in range(len(whole)) if index not in unsent]
    request = classify_service_pb2.ClassifyRequest(
        model=valid_text("model", model),
        texts=[texts[index] for index in sent] if texts else (),
        pairs=[
            classify_service_pb2.TextPair(first=pairs[index][0], second=pairs[index][1])
            for index in (sent if pairs else ())
        ],
        options=classify_options(**options),
        allow_partial=allow_partial,
        max_response_bytes=RESPONSE_BYTES_MAX,
    )
    return UnaryCall(
        lambda stubs: stubs.classify.Classify,
        request if sent or not unsent else None,
        lambda response: decode_classifications(
            response or classify_service_pb2.ClassifyResponse(), sent, unsent
        ),
        {"inputs": [whole[index] for index in sent], "model": model},
        functools.partial(
            classify_call, pairs or texts, model, limit, allow_partial=allow_partial, **options
        )
        if allow_partial
        else None,
        "classify_stream",
    )


def tokenize_call(
    texts: Iterable[str], model: str, **options: Unpack[TokenizeOptions]
) -> UnaryCall[list[TokenizedText]]:
    """Return the call of Tokenize; errors as `embed_call`."""
    valid = valid_texts("texts", texts)
    return UnaryCall(
        lambda stubs: stubs.tokenizer.Tokenize,
        tokenizer_service_pb2.TokenizeRequest(
            model=valid_text("model", model),
            texts=valid,
            options=tokenize_options(**options),
            max_response_bytes=RESPONSE_BYTES_MAX,
        ),
        functools.partial(decode_tokens, text_count=len(valid)),
        {"texts": valid, "model": model} | option_texts(options),
    )


def count_tokens_call(
    texts: Iterable[str], model: str, **options: Unpack[TokenizeOptions]
) -> UnaryCall[TokenCounts]:
    """Return the call of CountTokens; errors as `embed_call`."""
    valid = valid_texts("texts", texts)
    return UnaryCall(
        lambda stubs: stubs.tokenizer.CountTokens,
        tokenizer_service_pb2.CountTokensRequest(
            model=valid_text("model", model), texts=valid, options=tokenize_options(**options)
        ),
        functools.partial(decode_token_counts, text_count=len(valid)),
        {"texts": valid, "model": model} | option_texts(options),
    )


def get_server_call() -> UnaryCall[Server]:
    """Return the call of GetServer."""
    return UnaryCall(
        lambda stubs: stubs.model.GetServer,
        model_service_pb2.GetServerRequest(),
        lambda response: decode_server(response.server),
    )


def get_status_call() -> UnaryCall[ServerStatus]:
    """Return the call of GetStatus."""
    return UnaryCall(
        lambda stubs: stubs.admin.GetStatus,
        admin_service_pb2.GetStatusRequest(),
        lambda response: decode_status(response.status),
    )


def load_model_call(
    model: str, source: str, aliases: Iterable[str], settings: Mapping[str, Any] | None
) -> UnaryCall[ModelStatus]:
    """Return the call of LoadModel.

    Raises:
        TypeError: A name is no str, or a value of the settings is not one of JSON.
        ValueError: A text is not valid Unicode.
    """
    request = admin_service_pb2.LoadModelRequest(
        model=valid_text("model", model), source=valid_text("source", source)
    )
    request.aliases.extend(valid_text("aliases", one) for one in aliases)
    try:
        request.settings.update(settings or {})
    except ValueError as error:
        raise TypeError(f"settings: {error}") from None
    return UnaryCall(
        lambda stubs: stubs.admin.LoadModel,
        request,
        lambda response: decode_model_status(response.model),
    )


def unload_model_call(model: str) -> UnaryCall[None]:
    """Return the call of UnloadModel.

    Raises:
        TypeError: The name is no str.
        ValueError: It is not valid Unicode.
    """
    return UnaryCall(
        lambda stubs: stubs.admin.UnloadModel,
        admin_service_pb2.UnloadModelRequest(model=valid_text("model", model)),
        lambda _: None,
    )


def _embed_request(
    texts: list[str], model: str, *, allow_partial: bool, **options: Unpack[EmbedOptions]
) -> pb.EmbedRequest:
    return pb.EmbedRequest(
        model=valid_text("model", model),
        texts=texts,
        options=embed_options(**options),
        allow_partial=allow_partial,
        # The server refuses a call whose response would be larger before it does the work.
        max_response_bytes=RESPONSE_BYTES_MAX,
    )


class ModelPages:
    """The pages of ListModels, one call for each.

    Args:
        task: List only models for this task; None for all.

    Attributes:
        models: The models of the pages so far.

    Raises:
        ValueError: There is no such task.
    """

    def __init__(self, task: Task | None) -> None:
        self.models: list[Model] = []
        self._task = enum_value(model_service_pb2.ModelTask, task)
        self._tokens = {""}
        self._next_token: str | None = ""

    def next_call(self) -> UnaryCall[None] | None:
        """Return the call for the next page, which adds to `models`; None after the last page.

        Decoding its response raises BadResponseError if the pages have no end.
        """
        if self._next_token is None:
            return None
        request = model_service_pb2.ListModelsRequest(task=self._task, page_token=self._next_token)
        return UnaryCall(lambda stubs: stubs.model.ListModels, request, self._add_page)

    def _add_page(self, response: model_service_pb2.ListModelsResponse) -> None:
        self.models += map(decode_model, response.models)
        token = response.next_page_token
        self._next_token = token or None
        if not token:
            return
        if token in self._tokens:
            raise BadResponseError("a page of models names an earlier page as the next one")
        self._tokens.add(token)
        if len(self._tokens) > _PAGES_MAX:
            raise BadResponseError(f"the list of models has more than {_PAGES_MAX} pages")


def get_model_call(name: str) -> UnaryCall[Model]:
    """Return the call of GetModel.

    Raises:
        TypeError: The name is not a str.
        ValueError: The name is not valid Unicode.
    """
    return UnaryCall(
        lambda stubs: stubs.model.GetModel,
        model_service_pb2.GetModelRequest(model=valid_text("name", name)),
        lambda response: decode_model(response.model),
        {"name": name},
    )


def health_call(service: str) -> UnaryCall[HealthStatus]:
    """Return the call of Check of grpc.health.v1.

    Raises:
        TypeError: The name is not a str.
        ValueError: The name is not valid Unicode.
    """

    def decode(response: Any) -> HealthStatus:
        names = health_pb2.HealthCheckResponse.ServingStatus
        known = response.status in names.values()
        return HealthStatus(names.Name(response.status)) if known else HealthStatus.UNKNOWN

    request = health_pb2.HealthCheckRequest(service=valid_text("service", service))
    return UnaryCall(lambda stubs: stubs.health.Check, request, decode, {"service": service})
