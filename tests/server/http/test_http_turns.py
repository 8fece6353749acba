"""No request over HTTP within the limits holds up the event loop of a real server."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from embedgrpc.server.settings.model_settings import ModelSettings
from tests.server.calls.test_loop_turns import CHARACTERS, MANY, MODELS, REQUEST_BYTES
from tests.server.http.test_body_size import BODIES
from tests.server.service import FIXTURES, PATIENCE_S, settings_for
from tests.server.watching import Watched, turn_ms_max, watching

pytestmark = pytest.mark.long


def filled(first: str, unit: str, last: str) -> bytes:
    """Return a body of the largest size, whose middle repeats a piece."""
    count = (REQUEST_BYTES - len(first) - len(last)) // len(unit.encode())
    return (first + unit * count + last).encode()


def cases() -> dict[str, tuple[str, bytes]]:
    """Return the costliest requests of each kind, by name: their paths and bodies."""
    some = {f"decode {name}": case for name, case in BODIES.items()}
    for name, character in CHARACTERS.items():
        for escaped in (False, True):
            for count in (1, MANY):
                share = REQUEST_BYTES // count - 16
                unit = json.dumps(character, ensure_ascii=escaped)[1:-1]
                text = json.loads(f'"{unit * (share // len(unit.encode()))}"')
                label = f"{name}, {count}{', escaped' if escaped else ''}"

                def body(value: object, *, ascii_: bool = escaped) -> bytes:
                    return json.dumps(value, ensure_ascii=ascii_, separators=(",", ":")).encode()

                some[f"embed {label}"] = "/v1/embeddings", body({"input": [text] * count})
                some[f"rank {label}"] = (
                    "/v1/rerank",
                    body({"model": "cross", "query": "q", "documents": [text] * count}),
                )
    short = ["a b"] * MANY
    other = [f"text {number}" for number in range(MANY)]
    for path, key in {
        "/v1/embeddings": "input", "/embed": "inputs", "/embeddings/": "sentences",
        "/v2/embed": "texts",
    }.items():  # fmt: skip
        some[f"vectors of {path}"] = path, json.dumps({key: short}).encode()
        # As many as are written on the event loop.
        some[f"some vectors of {path}"] = path, json.dumps({key: short[:97]}).encode()
    some |= {
        "vectors as base64": (
            "/v1/embeddings",
            json.dumps({"input": other, "encoding_format": "base64"}).encode(),
        ),
        "vectors as many formats": (
            "/v2/embed",
            json.dumps(
                {"texts": short, "embedding_types": ["float", "int8", "ubinary", "base64"]}
            ).encode(),
        ),
        "rows of another service": (
            "/v1/embedding",
            json.dumps([{"query": one} for one in short]).encode(),
        ),
        "sparse vectors": (
            "/embed_sparse",
            json.dumps({"inputs": [f"{one} some words" for one in other]}).encode(),
        ),
        "rank with texts": (
            "/v1/rerank",
            json.dumps(
                {"model": "cross", "query": "q", "documents": [one * 10 for one in other]}
            ).encode(),
        ),
        "rank as text-embeddings-inference": (
            "/rerank",
            json.dumps({"query": "q", "texts": other, "return_text": True}).encode(),
        ),
        "pairs": (
            "/rerank/",
            json.dumps({"sentence_pairs": [[one, one] for one in other]}).encode(),
        ),
        "model name": ("/v1/embeddings", filled('{"input":"a","model":"', "\U0001f600", '"}')),
        "role": ("/v1/embeddings", filled('{"input":"a","input_type":"', "\U0001f600", '"}')),
        "prompt name": ("/v1/embeddings", filled('{"input":"a","prompt_name":"', "a", '"}')),
        "instruction": (
            "/v1/rerank",
            filled('{"query":"q","documents":["a"],"instruction":"', "a", '"}'),
        ),
        "formats": (
            "/v2/embed",
            b'{"texts":["a"],"embedding_types":[' + b'"int8",' * 17_000 + b'"int8"]}',
        ),
        "no JSON": ("/v1/embeddings", b"[" * REQUEST_BYTES),
        "blanks": ("/v1/embeddings", b" " * REQUEST_BYTES),
    }
    return some


CASES = cases()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(cache_dir: Path) -> AsyncIterator[Watched]:
    """A server for all tests of this module; its default model has 384 dimensions."""
    names = ("wide", "cross", "splade")
    models = [
        ModelSettings(id=name, source=source if ":" in source else str(FIXTURES / source))
        for name, source in ((name, MODELS[name]) for name in names)
    ]
    settings = settings_for(
        *models,
        cache_dir=cache_dir,
        max_queued_inputs=4 * MANY,
        http_address="127.0.0.1:0",
    )
    async with watching(settings) as watched:
        for _ in range(2):
            for path in ("/v1/embeddings", "/v1/rerank", "/v2/embed"):
                await send(watched, path, b"{}")
            await send(watched, "/v1/embeddings", b'{"input":"a"}')
        yield watched


async def send(server: Watched, path: str, body: bytes) -> int:
    """Send a request, which the server may refuse; return its status."""
    timeout = aiohttp.ClientTimeout(total=2 * PATIENCE_S)
    url = f"http://{server.http_address}{path}"
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(
            url, data=io.BytesIO(body), headers={"content-type": "application/json"}
        ) as response,
    ):
        await response.read()
        assert response.status < 500
        return response.status


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES)
async def test_no_request_holds_up_the_loop(server: Watched, case: str) -> None:
    """For no request within the limits, a turn of the loop takes over 5 ms."""
    path, body = CASES[case]

    async def work() -> None:
        await send(server, path, body)

    assert await server.shortest(work) < turn_ms_max()


@pytest.mark.asyncio(loop_scope="module")
async def test_many_large_bodies_at_once(server: Watched) -> None:
    """They are decoded one by one."""
    path, body = CASES["decode a text, escaped"]

    async def work() -> None:
        await asyncio.gather(*(send(server, path, body) for _ in range(8)))

    assert await server.shortest(work) < turn_ms_max()
