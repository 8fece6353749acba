"""Describes the HTTP port in OpenAPI 3.1, from the table of routes.

Source: the OpenAPI Specification 3.1.1; msgspec writes the schemas of types.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

import msgspec

from embedgrpc.engine.errors import EngineError, InvalidRequestError, Reason
from embedgrpc.server.http.exchange import Route
from embedgrpc.server.http.failures import STATUSES, ErrorForm
from embedgrpc.server.http.fields import DEFAULT_KEY, INPUTS_SETTING
from embedgrpc.server.http.headers import (
    CHALLENGE_HEADERS,
    RATE_HEADERS,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    RETRY_HEADERS,
    TIMING_HEADERS,
)
from embedgrpc.server.identity.credentials import API_KEY_KEY

JsonObject = dict[str, Any]

_SCHEMAS: Final = "#/components/schemas/{name}"
# What a request with a body can break in HTTP itself.
_BODY_STATUSES: Final = (413, 415)
_RETRY_STATUSES: Final = frozenset({429, 503})
_RATE_STATUS: Final = 429
_CHALLENGE_STATUS: Final = 401
# What a server does not send where nobody needs credentials.
_NOT_SENT: Final = frozenset({Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED})
_SECURITY_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key or a token (JWT).",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": API_KEY_KEY},
}


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What bounds every body.

    Attributes:
        inputs: The most texts of a call.
        size_bytes: The most bytes of a body.
    """

    inputs: int
    size_bytes: int


def describe(
    routes: Iterable[Route], limits: BodyLimits, *, public: Collection[str] | None = None
) -> bytes:
    """Return the document, as JSON.

    Args:
        routes: The table. Those that share a method and a path become one operation, whose body
            and answer are one of theirs.
        limits: What bounds every body.
        public: What is public although calls need credentials, as the setting names it; None where
            nobody needs any.
    """
    table = tuple(routes)
    schemas = _Schemas(table, limits)
    paths: dict[str, JsonObject] = {}
    for operation in operations(table):
        path, method = operation[0].path, operation[0].method.lower()
        described = paths.setdefault(path, {})[method] = _operation(
            operation, schemas, _NOT_SENT if public is None else frozenset()
        )
        if public is not None and operation[0].needs_credentials(public):
            described["security"] = [{name: []} for name in _SECURITY_SCHEMES]
    document = {
        "openapi": "3.1.1",
        "info": {
            "title": "embedgrpc",
            "version": version("embedgrpc"),
            "description": "Embeddings and reranking for the clients of several services.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(one.tag for one in table)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            **({} if public is None else {"securitySchemes": _SECURITY_SCHEMES}),
            "parameters": {
                name: {
                    "name": name,
                    "in": "header",
                    "description": description,
                    "schema": {"type": "string"},
                }
                for name, description in REQUEST_HEADERS.items()
            },
            "headers": {
                name: {"description": description, "schema": {"type": "string"}}
                for name, description in {
                    **RESPONSE_HEADERS,
                    **TIMING_HEADERS,
                    **RETRY_HEADERS,
                    **RATE_HEADERS,
                    **CHALLENGE_HEADERS,
                }.items()
            },
        },
    }
    return msgspec.json.encode(document)


def operations(routes: Iterable[Route]) -> Iterator[Sequence[Route]]:
    """Yield the routes that share a method and a path together."""
    found: dict[tuple[str, str], list[Route]] = {}
    for route in routes:
        found.setdefault((route.path, route.method), []).append(route)
    yield from found.values()


class _Schemas:
    """The schemas of all types in a table of routes.

    Attributes:
        components: Those that have names.
    """

    def __init__(self, routes: Sequence[Route], limits: BodyLimits) -> None:
        kinds = {
            id(kind): kind
            for route in routes
            for kind in (route.body, route.answer, route.errors.body)
            if kind is not None
        }
        schemas, self.components = msgspec.json.schema_components(
            kinds.values(), ref_template=_SCHEMAS
        )
        self._by_kind = dict(zip(kinds, schemas, strict=True))
        bodies = [one.body for one in routes if one.body is not None]
        _, parts = msgspec.json.schema_components(bodies, ref_template=_SCHEMAS)
        for name in parts:
            for schema in self.components[name].get("properties", {}).values():
                _bound(schema, limits)
        for body in bodies:
            if self.of(body).get("type") == "array":
                self.of(body).setdefault("maxItems", limits.inputs)

    def of(self, kind: Any) -> JsonObject:
        """Return the schema of a type of the table."""
        return self._by_kind[id(kind)]

    def one_of(self, kinds: Iterable[Any]) -> JsonObject:
        """Return the schema of a value of one of several types."""
        found = [self.of(kind) for kind in kinds]
        different = [one for index, one in enumerate(found) if one not in found[:index]]
        return different[0] if len(different) == 1 else {"oneOf": different}


def _bound(schema: JsonObject, limits: BodyLimits, above: frozenset[str] = frozenset()) -> None:
    """Complete what a key of a body may be: its limits follow from the settings.

    Args:
        schema: The schema of the key, or a part of it.
        limits: What bounds every body.
        above: The keywords of the schemas that it is a part of.
    """
    if DEFAULT_KEY in schema:
        schema["default"] = schema.pop(DEFAULT_KEY)
    if schema.get("maxItems") == INPUTS_SETTING:
        schema["maxItems"] = limits.inputs
    keywords = above | schema.keys()
    # Neither a text nor a list is longer than the body.
    if schema.get("type") == "string" and not keywords & {"maxLength", "enum", "pattern"}:
        schema["maxLength"] = limits.size_bytes
    if schema.get("type") == "array" and not keywords & {"maxItems", "enum"}:
        schema["maxItems"] = limits.size_bytes
    for part in schema.get("anyOf", ()):
        _bound(part, limits, keywords)
    for part in (schema.get("items"), *schema.get("prefixItems", ())):
        if isinstance(part, dict):
            _bound(part, limits)


def _operation(
    routes: Sequence[Route], schemas: _Schemas, not_sent: Collection[Reason]
) -> JsonObject:
    first = routes[0]
    operation: JsonObject = {
        "operationId": _identifier(first),
        "summary": " or ".join(dict.fromkeys(one.summary for one in routes)),
        "tags": list(dict.fromkeys(one.tag for one in routes)),
        "parameters": list(_parameters(first)),
        "responses": {
            "200": {
                "description": "The answer",
                "headers": _headers(
                    [
                        *RESPONSE_HEADERS,
                        *(TIMING_HEADERS if first.body is not None else ()),
                        *(RATE_HEADERS if not first.is_open else ()),
                    ]
                ),
                "content": {first.media_type: {"schema": schemas.one_of(o.answer for o in routes)}},
            },
            **_errors(routes, schemas, not_sent),
        },
    }
    if len(routes) > 1:
        keys = "; ".join(f"`{one.key}` for {one.tag}" for one in routes)
        operation["description"] = f"The keys of the body tell the services apart: {keys}."
    if bodies := [one.body for one in routes if one.body is not None]:
        operation["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": schemas.one_of(bodies),
                    "examples": {one.key or "body": {"value": one.example} for one in routes},
                }
            },
        }
    return operation


def _identifier(route: Route) -> str:
    """Return a name that only one operation has: `/embeddings` is not `/embeddings/`."""
    words = route.path.replace("{", "").replace("}", "").replace("/", "_")
    return f"{route.method.lower()}{words}"


def _parameters(route: Route) -> Iterator[JsonObject]:
    _, brace, name = route.path.partition("{")
    if brace:
        yield {
            "name": name.rstrip("}"),
            "in": "path",
            "required": True,
            "description": "The rest of the path; it may contain slashes.",
            "schema": {"type": "string"},
        }
    if not route.is_open:
        for header in REQUEST_HEADERS:
            yield {"$ref": f"#/components/parameters/{header}"}


def _errors(routes: Sequence[Route], schemas: _Schemas, not_sent: Collection[Reason]) -> JsonObject:
    """Return the responses for errors by their statuses."""
    content = {"application/json": {"schema": schemas.one_of(one.errors.body for one in routes)}}
    reasons: dict[int, list[str]] = {}
    for form in dict.fromkeys(one.errors for one in routes):
        has_body = routes[0].body is not None
        for status, names in _statuses(form, not_sent, has_body=has_body).items():
            known = reasons.setdefault(status, [])
            known.extend(name for name in names if name not in known)
    return {
        str(status): {
            "description": ", ".join(reasons[status]) or HTTPStatus(status).phrase,
            "headers": _headers(
                [
                    *RESPONSE_HEADERS,
                    *(RETRY_HEADERS if status in _RETRY_STATUSES else ()),
                    *(RATE_HEADERS if status == _RATE_STATUS else ()),
                    *(CHALLENGE_HEADERS if status == _CHALLENGE_STATUS else ()),
                ]
            ),
            "content": content,
        }
        for status in sorted(reasons)
    }


def _statuses(
    form: ErrorForm, not_sent: Collection[Reason], *, has_body: bool
) -> Mapping[int, list[str]]:
    """Return the statuses that a dialect's errors can have, with the names of their reasons."""
    reasons: dict[int, list[str]] = {}
    for reason in Reason:
        if reason in not_sent:
            continue
        error = EngineError("")
        error.reason = reason
        status, _ = form(error, STATUSES[reason])
        reasons.setdefault(status, []).append(reason.value)
    for status in _BODY_STATUSES if has_body else ():
        status_of_form, _ = form(InvalidRequestError(""), status)
        reasons.setdefault(status_of_form, [])
    return reasons


def _headers(names: Iterable[str]) -> JsonObject:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
