"""Finds the route of a request: by its path and method, and then by the keys of its body."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from embedgrpc.engine.errors import InvalidRequestError
from embedgrpc.server.caller import ANY_CALLER, Need
from embedgrpc.server.contract.names import show_name
from embedgrpc.server.http.exchange import Route
from embedgrpc.server.http.failures import HttpError

_KNOWN_TYPES_MAX = 256
# As msgspec says it.
_MISSING = "Object missing required field "
_TRUNCATED = "Input data was truncated"


@dataclass(frozen=True, slots=True)
class Match:
    """The routes of a request's path and method.

    Attributes:
        routes: At least one; several if they differ in their bodies.
        argument: What stands for the route's `{NAME}`.
    """

    routes: Sequence[Route]
    argument: str = ""

    @property
    def need(self) -> Need:
        """What a caller needs, as far as that is known before the body is read."""
        first = self.routes[0].need
        return first if all(one.need == first for one in self.routes) else ANY_CALLER


class Routes:
    """The table of routes."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._by_path: dict[str, dict[str, list[Route]]] = {}
        for route in routes:
            self._by_path.setdefault(route.path, {}).setdefault(route.method, []).append(route)

    def __iter__(self) -> Iterator[Route]:
        for methods in self._by_path.values():
            for routes in methods.values():
                yield from routes

    def find(self, method: str, path: str) -> Match:
        """Return the routes of a request.

        Raises:
            HttpError: There is none.
        """
        methods, argument = self._methods_of(path)
        routes = methods.get("GET" if method == "HEAD" else method)
        if routes is None:
            allowed = ", ".join(methods)
            error = InvalidRequestError(f"{show_name(path)} takes {allowed}, not this method")
            raise HttpError(405, error, {"allow": allowed})
        return Match(routes, argument)

    def route(self, method: str, path: str) -> Route | None:
        """Return the first of the routes of a request; None if there is none."""
        try:
            return self.find(method, path).routes[0]
        except HttpError:
            return None

    def methods(self, path: str) -> Sequence[str]:
        """Return the methods of a path.

        Raises:
            HttpError: There is no such path.
        """
        return tuple(self._methods_of(path)[0])

    def _methods_of(self, path: str) -> tuple[dict[str, list[Route]], str]:
        # Clients end paths with a slash, or not, as they like; where it matters both are listed.
        for one in (path, path.rstrip("/"), f"{path}/"):
            if (methods := self._by_path.get(one)) is not None:
                return methods, ""
        for known, methods in self._by_path.items():
            prefix, brace, _ = known.partition("{")
            if brace and path.startswith(prefix) and len(path) > len(prefix):
                return methods, path.removeprefix(prefix)
        raise HttpError(404, InvalidRequestError(f"there is no path {show_name(path)}"))


def decode(match: Match, data: bytes) -> tuple[Route, Any]:
    """Choose the route by the body, and decode it.

    Raises:
        InvalidRequestError: It is malformed, or breaks the rules of the dialect.
    """
    route = match.routes[0]
    if len(match.routes) > 1:
        keys = _decode(data, dict[str, msgspec.Raw])
        fitting = [one for one in match.routes if one.key in keys]
        if not fitting:
            known = " or ".join(one.key for one in match.routes)
            raise InvalidRequestError(f"the body must have {known}", field=route.key)
        route = fitting[0]
    return route, None if route.body is None else _decode(data, route.body)


@lru_cache(_KNOWN_TYPES_MAX)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return _decoder(kind).decode(data)
    except msgspec.ValidationError as error:
        # It names types and the path, never a value.
        reason, _, place = str(error).partition(" - at ")
        field = place.strip("`").removeprefix("$").removeprefix(".")
        plain = reason.replace("`", "")
        if plain.startswith(_MISSING):
            name = plain.removeprefix(_MISSING)
            field = f"{field}.{name}" if field else name
            plain = "the body must have it"
        message = f"{field}: {plain}" if field else plain
        raise InvalidRequestError(
            message, field=field, metadata={"label": "MALFORMED_MESSAGE"}
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        detail = _explain(error)
        raise InvalidRequestError(
            f"the body is not valid JSON: {detail}", metadata={"label": "MALFORMED_MESSAGE"}
        ) from None


def _explain(error: Exception) -> str:
    """Return what is wrong with a body that is not JSON; without a byte of it."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "a string is not UTF-8"
    if str(error) == _TRUNCATED:
        # msgspec says the same of both.
        return "it ends early, or a string has half of a surrogate pair"
    return str(error)
