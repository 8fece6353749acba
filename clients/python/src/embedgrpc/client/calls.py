"""Every unary call: what is sent, and how the answer is read. No I/O."""

import enum
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, Unpack

from grpc_health.v1 import health_pb2

from embedgrpc.client.channel import Stubs
from embedgrpc.client.enums import Task, enum_value
from embedgrpc.client.errors import BadResponseError
from embedgrpc.client.models import Model, read_model
from embedgrpc.client.options import (
    EmbedOptions,
    RerankOptions,
    embed_options,
    rerank_request,
    valid_text,
    valid_texts,
)
from embedgrpc.client.reading import read_embeddings, read_ranking
from embedgrpc.client.results import Embeddings, Ranking
from embedgrpc.v1 import embedding_service_pb2, model_service_pb2

AnswerT = TypeVar("AnswerT")


class HealthStatus(enum.StrEnum):
    """What a server says of one of its services."""

    UNKNOWN = "UNKNOWN"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Call(Generic[AnswerT]):
    """One unary call.

    Attributes:
        method: Finds the method among the stubs.
        request: What is sent.
        read: Turns the response into what the caller gets.
    """

    method: Callable[[Stubs], Any]
    request: Any
    read: Callable[[Any], AnswerT]


def embed_call(
    texts: Iterable[str], model: str, **options: Unpack[EmbedOptions]
) -> Call[Embeddings]:
    """Prepares Embed.

    Args:
        texts: What to embed.
        model: Id of the model; "" for the server's default.
        options: How.

    Returns:
        The call.

    Raises:
        TypeError: A text or an option has the wrong type.
        ValueError: A text is not valid Unicode, or an option is out of its range.
    """
    request = embedding_service_pb2.EmbedRequest(
        model=valid_text("model", model),
        texts=valid_texts("texts", texts),
        options=embed_options(**options),
    )
    return Call(
        lambda stubs: stubs.embedding.Embed,
        request,
        functools.partial(read_embeddings, text_count=len(request.texts)),
    )


def rerank_call(
    query: str, documents: Iterable[str], model: str, **options: Unpack[RerankOptions]
) -> Call[Ranking]:
    """Prepares Rerank.

    Args:
        query: What the documents are compared with.
        documents: The documents.
        model: Id of the model; "" for the server's default.
        options: How.

    Returns:
        The call.

    Raises:
        TypeError: A text or an option has the wrong type.
        ValueError: A text is not valid Unicode, or an option is out of its range.
    """
    request = rerank_request(query, documents, model, **options)
    return Call(
        lambda stubs: stubs.rerank.Rerank,
        request,
        functools.partial(read_ranking, document_count=len(request.documents)),
    )


def list_models_call(task: Task | None, page_token: str) -> Call[tuple[list[Model], str]]:
    """Prepares one page of ListModels.

    Args:
        task: Only models for this task; None for all.
        page_token: "" for the first page.

    Returns:
        The call; it answers with the models and the token of the next page, "" on the last.

    Raises:
        ValueError: There is no such task.
    """

    def read(response: model_service_pb2.ListModelsResponse) -> tuple[list[Model], str]:
        if page_token and response.next_page_token == page_token:
            raise BadResponseError("a page of models names itself as the next one")
        return [read_model(model) for model in response.models], response.next_page_token

    request = model_service_pb2.ListModelsRequest(
        task=enum_value(model_service_pb2.Task, task), page_token=page_token
    )
    return Call(lambda stubs: stubs.model.ListModels, request, read)


def get_model_call(name: str) -> Call[Model]:
    """Prepares GetModel.

    Args:
        name: Id or alias of the model.

    Returns:
        The call.

    Raises:
        TypeError: The name is not a str.
        ValueError: The name is not valid Unicode.
    """
    request = model_service_pb2.GetModelRequest(model=valid_text("name", name))
    return Call(
        lambda stubs: stubs.model.GetModel, request, lambda response: read_model(response.model)
    )


def health_call(service: str) -> Call[HealthStatus]:
    """Prepares the Check of grpc.health.v1.

    Args:
        service: Name of the service; "" for the process.

    Returns:
        The call.

    Raises:
        TypeError: The name is not a str.
        ValueError: The name is not valid Unicode.
    """

    def read(response: Any) -> HealthStatus:
        number = response.status
        known = number in health_pb2.HealthCheckResponse.ServingStatus.values()
        names = health_pb2.HealthCheckResponse.ServingStatus
        return HealthStatus(names.Name(number)) if known else HealthStatus.UNKNOWN

    request = health_pb2.HealthCheckRequest(service=valid_text("service", service))
    return Call(lambda stubs: stubs.health.Check, request, read)
