"""The tables and examples of docs/http.md, generated from the table of routes.

uv run python -m tests.routes_table     writes them into the file
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from embedgrpc.engine.errors import EngineError
from embedgrpc.server.http.dialects.all_routes import all_routes
from embedgrpc.server.http.dialects.tei import tei_error
from embedgrpc.server.http.docs_page import body_keys, curl
from embedgrpc.server.http.exchange import Route
from embedgrpc.server.http.failures import STATUSES
from embedgrpc.server.http.headers import (
    CHALLENGE_HEADERS,
    RATE_HEADERS,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    RETRY_HEADERS,
    TIMING_HEADERS,
)

DOCUMENT = Path(__file__).parent.parent / "docs/http.md"
_RESPONSE_HEADERS = {
    **RESPONSE_HEADERS,
    **TIMING_HEADERS,
    **RETRY_HEADERS,
    **RATE_HEADERS,
    **CHALLENGE_HEADERS,
}
URL = "http://127.0.0.1:8080"


def render(document: str) -> str:
    """Return the document with all tables and examples up to date."""
    routes = tuple(all_routes())
    for title, lines in (
        ("Routes", _routes(routes)),
        ("Examples", _examples(routes)),
        ("Request headers", _headers(REQUEST_HEADERS)),
        ("Response headers", _headers(_RESPONSE_HEADERS)),
        ("Statuses", _statuses()),
    ):
        document = _replace(document, title, lines)
    return document


def _replace(document: str, title: str, lines: Iterable[str]) -> str:
    begin, end = f"<!-- {title}: begin -->\n", f"<!-- {title}: end -->"
    before, found, rest = document.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{DOCUMENT.name} has no place for {title!r}")
    return before + begin + "\n".join(lines) + "\n" + rest[rest.index(end) :]


def _by_tag(routes: Iterable[Route]) -> dict[str, list[Route]]:
    tags: dict[str, list[Route]] = {}
    for route in routes:
        tags.setdefault(route.tag, []).append(route)
    return tags


def _routes(routes: Sequence[Route]) -> list[str]:
    table = ["| clients of | path | the body has | |", "|---|---|---|---|"]
    for tag, some in _by_tag(routes).items():
        table += [
            f"| {tag} | `{one.method} {one.path}` | {_keys(one)} | {one.summary} |" for one in some
        ]
    return table


def _keys(route: Route) -> str:
    """Return the keys that every body of a route has."""
    if route.body is None:
        return ""
    is_list = isinstance(route.example, list)
    must, _ = body_keys(route)
    # Where one of several keys is needed, the example has the usual one.
    keys = ", ".join(f"`{name}`" for name in must or list(route.example)[:1])
    return f"a list of objects with {keys}" if is_list else keys


def _examples(routes: Sequence[Route]) -> list[str]:
    """Return an example of what each kind of client sends."""
    lines: list[str] = []
    for tag, some in _by_tag(routes).items():
        shown: set[object] = set()
        for route in some:
            # The first of several paths that do the same.
            if route.body is None or route.handle in shown:
                continue
            shown.add(route.handle)
            lines += [f"{tag}: {_lower(route.summary)}.", "", "```sh", curl(route, url=URL)]
            lines += ["```", ""]
    return lines[:-1]


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _headers(headers: Mapping[str, str]) -> list[str]:
    return [
        "| header | |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in headers.items()),
    ]


def _statuses() -> list[str]:
    table = ["| reason | status | on paths of text-embeddings-inference |", "|---|---|---|"]
    for reason, status in STATUSES.items():
        error = EngineError("")
        error.reason = reason
        table.append(f"| `{reason.value}` | {status} | {tei_error(error, status)[0]} |")
    return table


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text("utf-8")), "utf-8")
