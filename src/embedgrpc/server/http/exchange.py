"""One request over HTTP and its answer, between the listener and a dialect."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.caller import ANY_CALLER, Need
from embedgrpc.server.calls.call_metadata import begin_call
from embedgrpc.server.http.call import HttpContext
from embedgrpc.server.http.failures import ErrorForm
from embedgrpc.server.http.headers import MODEL_HEADER
from embedgrpc.server.http.spent import Spent
from embedgrpc.server.loading.catalog import Catalog, ModelState, ServedModel
from embedgrpc.server.services.health import HealthService
from embedgrpc.server.settings.settings import Settings
from embedgrpc.server.telemetry.prometheus import MetricsPage


@dataclass(frozen=True, slots=True)
class Answer:
    """A response.

    Attributes:
        body: Its bytes.
        status: Its status.
        content_type: The media type of the body.
        headers: Further headers.
    """

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """What the dialects need of the server.

    Attributes:
        catalog: The models.
        settings: The settings.
        health: The health of the services.
        started_at: When the server started, in seconds since the epoch.
        metrics: What `/metrics` shows.
    """

    catalog: Catalog
    settings: Settings
    health: HealthService
    started_at: int
    metrics: MetricsPage

    def is_ready(self) -> bool:
        """Return whether the server can serve calls.

        The setting `readiness` names the models that must serve. A server that is about to stop is
        not ready.
        """
        serve = [one.state is ModelState.READY for one in self.catalog]
        match self.settings.readiness:
            case "all":
                enough = all(serve)
            case "any":
                enough = any(serve)
            case "default":
                enough = serve[0]
        return enough and self.health.is_serving()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that a dialect answers.

    Attributes:
        served: The server.
        context: The call's context.
        body: The decoded body; None for a request without one.
        size_bytes: The bytes of the body as it came.
        argument: The last part of the path, if the route has one such as `{id}`.
        spent: What its work took.
    """

    served: Served
    context: HttpContext
    body: Any
    size_bytes: int
    argument: str
    spent: Spent = field(default_factory=Spent)

    def find_model(self, name: str | None, *, default: str = "") -> ServedModel:
        """Return the model of the request.

        Args:
            name: What the body says; the header `embedgrpc-model` counts if it says nothing.
            default: The model if neither says anything; empty for the server's default.

        Raises:
            InvalidRequestError: The name is too long.
            ModelNotFoundError: No model has this name.
        """
        catalog = self.served.catalog
        if name:
            return catalog.find(name)
        named = self.context.header(MODEL_HEADER)
        return catalog.find(named, field=MODEL_HEADER) if named else catalog.find(default)

    def begin(self, priority: int = 0) -> Call:
        """Read what applies to the whole call: its deadline, caller and work class.

        Raises:
            InvalidRequestError: A header is wrong.
        """
        settings = self.served.settings
        call = begin_call(
            self.context,
            WorkClass.INTERACTIVE,
            settings,
            priority=priority,
            field="priority",
            max_s=settings.max_unary_s,
        )
        self.spent.calls.append(call)
        return call


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the table of routes: a path, and the dialect that answers it.

    Attributes:
        method: GET or POST.
        path: The path; a last part `{NAME}` stands for the rest of the path.
        handle: Answers a request.
        errors: The form of errors.
        summary: One line for the documentation.
        tag: Whose clients use it.
        answer: The type of the answer.
        media_type: The media type of the answer.
        body: The type of the body; None for none.
        example: A body that works with any model that can do this, for the documentation.
        key: Where several dialects share the path: the key that only this one's bodies have.
        fields: Names of the dialect for fields of the contract, for errors.
        is_open: Whether it is answered even when the server takes no more calls: probes.
        need: What its callers need.
    """

    method: str
    path: str
    handle: Callable[[Exchange], Awaitable[Answer]]
    errors: ErrorForm
    summary: str
    tag: str
    answer: Any
    media_type: str = "application/json"
    body: Any = None
    example: Any = None
    key: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    is_open: bool = False
    need: Need = ANY_CALLER

    def needs_credentials(self, public: Collection[str]) -> bool:
        """Return whether it needs credentials, where calls do.

        Args:
            public: What is public all the same, as the setting names it.
        """
        return not self.need.is_public and self.need.public_as not in public


def to_json(value: Any) -> Answer:
    """Answer with a value as JSON."""
    return Answer(msgspec.json.encode(value))
