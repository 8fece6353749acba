"""The unary calls: the request of each, and how its response is decoded. No I/O."""

import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, Unpack

from grpc_health.v1 import health_pb2

from embedgrpc.client.channel import Stubs
from embedgrpc.client.decoding import decode_embeddings, decode_ranking
from embedgrpc.client.enums import Task, enum_value
from embedgrpc.client.errors import BadResponseError
from embedgrpc.client.model_description import Model, decode_model
from embedgrpc.client.options import (
    EmbedOptions,
    RerankOptions,
    embed_options,
    rerank_request,
    valid_text,
    valid_texts,
)
from embedgrpc.client.result_types import Embeddings, Ranking
from embedgrpc.v1 import embedding_service_pb2, model_service_pb2

ResultT = TypeVar("ResultT")

_PAGES_MAX: Final = 1000


class HealthStatus(enum.StrEnum):
    """The status of a service of the server."""

    UNKNOWN = "UNKNOWN"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[ResultT]):
    """One unary call.

    Attributes:
        method: Returns the method of the call among the stubs.
        request: The message to send.
        decode: Turns the response into the result of the call.
        texts: Every part of the request of unlimited length, by the name of its argument.
    """

    method: Callable[[Stubs], Any]
    request: Any
    decode: Callable[[Any], ResultT]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)


def embed_call(
    texts: Iterable[str], model: str, **options: Unpack[EmbedOptions]
) -> UnaryCall[Embeddings]:
    """Return the call of Embed.

    Raises:
        TypeError: A text or an option has the wrong type.
        ValueError: A text is not valid Unicode, or an option is out of range.
    """
    valid = valid_texts("texts", texts)
    request = embedding_service_pb2.EmbedRequest(
        model=valid_text("model", model), texts=valid, options=embed_options(**options)
    )
    return UnaryCall(
        lambda stubs: stubs.embedding.Embed,
        request,
        functools.partial(decode_embeddings, text_count=len(valid)),
        {
            "texts": valid,
            "model": model,
            "prompt_name": options.get("prompt_name") or "",
            "prompt_text": options.get("prompt_text") or "",
        },
    )


def rerank_call(
    query: str, documents: Iterable[str], model: str, **options: Unpack[RerankOptions]
) -> UnaryCall[Ranking]:
    """Return the call of Rerank.

    Raises:
        TypeError: A text or an option has the wrong type.
        ValueError: A text is not valid Unicode, or an option is out of range.
    """
    valid = valid_texts("documents", documents)
    return UnaryCall(
        lambda stubs: stubs.rerank.Rerank,
        rerank_request(query, valid, model, **options),
        functools.partial(decode_ranking, document_count=len(valid)),
        {
            "query": query,
            "documents": valid,
            "model": model,
            "instruction": options.get("instruction", ""),
        },
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
