"""The description of the HTTP port is true: it is made from the table that the server uses."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_origin

import msgspec
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from embedgrpc.server.http.dialects.all_routes import all_routes
from embedgrpc.server.http.docs_page import page, security_policy
from embedgrpc.server.http.exchange import Route
from tests.server.conftest import Serve
from tests.server.http.conftest import sharing
from tests.server.http.example_models import M3, MODELS, model_for
from tests.server.http.http_client import HttpClient, Reply
from tests.server.service import Service

ROUTES = tuple(all_routes())


in_module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(cache_dir: Path) -> AsyncIterator[Service]:
    """A server that can do whatever the examples ask for, of which `http` is a client."""
    async with sharing(*MODELS, cache_dir=cache_dir) as service:
        yield service


async def _document(http: HttpClient) -> Any:
    reply = await http.get("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json


async def _send(http: HttpClient, route: Route, body: Any) -> Reply:
    prefix, brace, _ = route.path.partition("{")
    path = prefix + M3.id if brace else route.path
    if route.method == "GET":
        return await http.get(path)
    return await http.post(path, body, embedgrpc_model=model_for(path))


def _validate(document: Any, operation: Any, status: int, body: bytes) -> None:
    """Check a body against the schema that the document has for its status."""
    (content,) = operation["responses"][str(status)]["content"].items()
    schema = content[1]["schema"] | {"components": document["components"]}
    value = json.loads(body) if content[0] == "application/json" else body.decode()
    Draft202012Validator(schema).validate(value)


@in_module
async def test_the_document_is_valid_and_has_every_route(http: HttpClient) -> None:
    """It follows OpenAPI 3.1, and its operations are the routes of the table."""
    document = await _document(http)
    OpenAPIV31SpecValidator(document).validate()
    found = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert found == {(one.method, one.path) for one in ROUTES}
    tags = {
        tag for item in document["paths"].values() for one in item.values() for tag in one["tags"]
    }
    assert tags == {one.tag for one in ROUTES} == {one["name"] for one in document["tags"]}
    # Names of types, not places in the code.
    assert not [name for name in document["components"]["schemas"] if "." in name]


def _parts(schema: Any) -> Iterator[Any]:
    """Yield the schemas of the values that a key may have, and of what is in them."""
    inner = [*schema.get("anyOf", ()), *schema.get("prefixItems", ())]
    if isinstance(schema.get("items"), dict):
        inner.append(schema["items"])
    if not schema.get("anyOf"):
        yield schema
    for part in inner:
        # A part has the keywords of what it is a part of, as far as they fit its type.
        about = schema if part in schema.get("anyOf", ()) else {}
        limits = {"maxLength", "enum", "pattern", "maxItems", "minimum", "maximum"}
        yield from _parts({key: about[key] for key in limits & about.keys()} | part)


LIMITS = {
    "string": ({"maxLength"}, {"enum"}, {"pattern"}),
    "array": ({"maxItems"}, {"enum"}),
    "integer": ({"minimum", "maximum"}, {"enum"}),
    "number": ({"minimum", "maximum"}, {"enum"}),
    "boolean": (set(),),
    "null": (set(),),
    "object": (set(),),
}


async def test_each_key_of_each_body_is_described(serve: Serve) -> None:
    """It has a sentence, a type, its limits, and what its absence means if it may be absent."""
    http = HttpClient(await serve(http_address="127.0.0.1:0", max_inputs=77))
    document = await _document(http)
    schemas = document["components"]["schemas"]
    bodies = [one.body for one in ROUTES if one.body is not None]
    _, parts = msgspec.json.schema_components(bodies)
    seen = 0
    for name in parts:
        schema = schemas[name]
        for key, value in schema["properties"].items():
            place = f"{name}.{key}"
            seen += 1
            assert value["description"].endswith("."), place
            assert key in schema.get("required", ()) or "default" in value, place
            for part in _parts(value):
                if "$ref" in part:
                    assert part["$ref"].rpartition("/")[2] in parts, place
                    continue
                limits = LIMITS[part["type"]]
                assert any(one <= part.keys() for one in limits), (place, part)
                assert isinstance(part.get("maxItems", 0), int), place
            assert not [keyword for keyword in value if keyword.startswith("x-")], place
    assert seen > 60
    inputs = schemas["EmbeddingsRequest"]["properties"]["input"]["anyOf"][1]
    assert inputs["maxItems"] == 77
    assert schemas["EmbeddingsRequest"]["properties"]["encoding_format"]["default"] == "float"
    for route in ROUTES:
        if get_origin(route.body) is list:
            content = document["paths"][route.path]["post"]["requestBody"]["content"]
            assert content["application/json"]["schema"]["maxItems"] == 77


@in_module
async def test_what_a_default_says_is_true(http: HttpClient) -> None:
    """A body with the default of a key gives the answer of one without it."""
    document = await _document(http)
    schemas = document["components"]["schemas"]
    sent = set()
    for route in ROUTES:
        if route.body is None or not isinstance(route.example, dict):
            continue
        properties = schemas[route.body.__name__]["properties"]
        for key, value in properties.items():
            if value.get("default") is None or key in route.example:
                continue
            sent.add(key)
            plain = await _send(http, route, route.example)
            same = await _send(http, route, route.example | {key: value["default"]})
            assert (plain.status, same.status) == (200, 200), (route.path, key, same.body)
            assert _lasting(plain.json) == _lasting(same.json), (route.path, key)
    assert {"encoding", "return_documents", "raw_scores", "normalize"} <= sent


def _lasting(value: Any) -> Any:
    """Return an answer without its id and time."""
    if isinstance(value, dict):
        return {key: one for key, one in value.items() if key not in {"id", "created"}}
    return value


@in_module
async def test_examples_work_and_answers_are_as_described(http: HttpClient) -> None:
    """Each route answers its example with exactly the keys of its type."""
    document = await _document(http)
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        examples: Any = {}
        if route.body is not None:
            content = operation["requestBody"]["content"]["application/json"]
            examples = content["examples"][route.key or "body"]["value"]
            schema = content["schema"] | {"components": document["components"]}
            Draft202012Validator(schema).validate(examples)
        reply = await _send(http, route, examples)
        assert reply.status == 200, (route.path, reply.body[:300])
        assert reply.headers["content-type"].partition(";")[0] == route.media_type
        _validate(document, operation, 200, reply.body)
        if route.media_type == "application/json":
            decoded = msgspec.json.decode(reply.body, type=route.answer)
            assert msgspec.to_builtins(decoded) == json.loads(reply.body), route.path


@in_module
async def test_errors_are_as_described(http: HttpClient) -> None:
    """The errors of each route that takes a body have a described status and form."""
    document = await _document(http)
    seen = set()
    for route in ROUTES:
        if route.body is None:
            continue
        operation = document["paths"][route.path]["post"]
        broken = [] if isinstance(route.example, list) else dict.fromkeys(route.example, 1)
        for body in (broken, b" " * 5_000_000):
            reply = await _send(http, route, body)
            assert reply.status >= 400
            seen.add(reply.status)
            _validate(document, operation, reply.status, reply.body)
    assert seen == {400, 413, 422}


@in_module
async def test_the_page_needs_nothing_from_elsewhere(http: HttpClient) -> None:
    """It has every route, and its policy allows only its own script, its style and this server."""
    reply = await http.get("/docs")
    text = reply.body.decode()
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.headers["content-security-policy"] == security_policy()
    assert not re.search(r"(?:src|href)=\"(?!openapi\.json\")", text)
    assert "://" not in text
    shown = re.findall(r"<summary><code>(\w+) ([^<]+)</code>", text)
    assert sorted(shown) == sorted((one.method, html.escape(one.path)) for one in ROUTES)
    assert (
        "<p>The body is an object. It must have <code>query</code>, <code>documents</code>; it may"
        " have <code>model</code>, <code>top_n</code>"
    ) in text
    assert "<p>The body is a list of objects. Each must have <code>query</code>.</p>" in text


# What the script of the page needs of a browser.
_BROWSER = """
const location = { origin: "http://example.test", pathname: "/below/docs/" };
const link = {};
const made = {};
const code = { textContent: "curl $URL/x" };
const output = { textContent: "" };
const form = {
  dataset: { method: "POST", path: "/v1/models/" },
  elements: { part: { value: "a/b" }, body: { value: "{}" } },
  querySelector: () => output,
  addEventListener: (name, run) => { made[name] = run; },
};
const document = {
  getElementById: () => link,
  querySelectorAll: (what) => what === "form" ? [form] : [code],
};
const sent = [];
const fetch = async (...request) => {
  sent.push(request);
  return { status: 200, text: async () => "answer" };
};
"""
_CHECK = """
made.submit({ preventDefault: () => {} }).then(() => {
  console.log(JSON.stringify([code.textContent, sent, output.textContent, link.href]));
});
"""


def test_the_script_of_the_page_sends_what_the_form_has(tmp_path: Path) -> None:
    """It sends what the form has, below the place of the page, and shows the answer."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    (script,) = re.findall(r"<script>(.*?)</script>", page(ROUTES).decode(), re.DOTALL)
    program = tmp_path / "page.js"
    program.write_text(_BROWSER + script.replace('"use strict";', "") + _CHECK)
    done = subprocess.run([node, program], capture_output=True, text=True, check=True, timeout=60)
    curl, sent, shown, link = json.loads(done.stdout)
    assert curl == "curl http://example.test/below/x"
    assert link == "/below/openapi.json"
    headers = {"content-type": "application/json"}
    assert sent == [["/below/v1/models/a/b", {"method": "POST", "body": "{}", "headers": headers}]]
    assert re.fullmatch(r"200, \d+ ms\nanswer", shown)
