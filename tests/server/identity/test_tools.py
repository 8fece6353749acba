"""Tools of others with a key and without: grpcurl, curl, and what describes the HTTP port."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openapi_spec_validator import OpenAPIV31SpecValidator

from embedgrpc.server.http.dialects.all_routes import all_routes
from tests.server.http.http_client import HttpClient
from tests.server.identity.callers import KeyFile
from tests.server.service import EMBED, PATIENCE_S, Service, serving, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

_TOOLS = Path(__file__).parents[3] / ".cache/bin"
_METHOD = "embedgrpc.v1.EmbeddingService/Embed"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    """The file of keys."""
    return KeyFile(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def key(keys: KeyFile) -> str:
    """A key that the server knows from its start."""
    return keys.add("tools")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(cache_dir: Path, keys: KeyFile, key: str) -> AsyncIterator[Service]:
    """A server that wants credentials."""
    del key  # it must be there first
    settings = settings_for(
        EMBED,
        cache_dir=cache_dir,
        http_address="127.0.0.1:0",
        public="docs",
        **keys.settings,
    )
    async with serving(settings) as one:
        yield one


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{_TOOLS}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        if os.environ.get("CI") and (name == "curl" or shutil.which("go")):
            pytest.fail(f"{name} is missing")
        pytest.skip(f"{name} is not installed")
    return found


async def _run(*command: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "no_proxy": "127.0.0.1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_grpcurl(service: Service, key: str) -> None:
    """It sends the key with reflection, too."""
    grpcurl = _program("grpcurl")
    data = ("-d", '{"texts": ["a text"]}', service.address, _METHOD)
    header = ("-H", f"authorization: Bearer {key}")
    code, out, err = await _run(grpcurl, "-plaintext", *header, *data)
    assert code == 0, err
    assert json.loads(out)["embeddings"]
    code, _, err = await _run(grpcurl, "-plaintext", *data)
    assert code != 0
    assert "Unauthenticated" in err
    code, out, _ = await _run(
        grpcurl, "-plaintext", "-rpc-header", "x-api-key: eg_wrong", "-reflect-header", header[1],
        *data,
    )  # fmt: skip
    assert code != 0
    code, out, _ = await _run(grpcurl, "-plaintext", service.address, "list")
    assert code != 0
    assert "EmbeddingService" not in out


async def test_curl(service: Service, key: str) -> None:
    """A refusal says how to prove who calls, and the body was not wanted."""
    curl = _program("curl")
    url = f"http://{service.server.http_address}/v1/embeddings"
    data = ("-sS", "-i", "-H", "content-type: application/json", "-d", '{"input": "a"}', url)
    code, out, err = await _run(curl, "-H", f"Authorization: Bearer {key}", *data)
    assert (code, err) == (0, "")
    assert out.startswith("HTTP/1.1 200")
    code, out, _ = await _run(curl, *data)
    assert code == 0
    assert out.startswith("HTTP/1.1 401")
    assert '\nwww-authenticate: bearer realm="embedgrpc"\r\n' in out.lower()
    error = json.loads(out.partition("\r\n\r\n")[2])["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "unauthenticated")
    code, out, _ = await _run(curl, "-H", "x-api-key: eg_wrong", *data)
    assert out.startswith("HTTP/1.1 401")
    assert 'error="invalid_token"' in out


async def test_a_client_that_sends_first_learns_why_it_is_refused(
    service: Service, key: str
) -> None:
    """It gets the refusal after a large body, and can go on with the same connection."""
    host, _, port = service.server.http_address.rpartition(":")
    body = json.dumps({"input": "x" * 3_000_000}).encode()
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(2):
            writer.write(head + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 401")
            length = re.search(rb"content-length: (\d+)", answer.lower())
            assert length is not None
            await reader.readexactly(int(length[1]))
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: %s\r\n\r\n" % key.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_body_without_a_key_is_not_read(service: Service) -> None:
    """A client that waits for the go-ahead gets the refusal in its place."""
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 100\r\nexpect: 100-continue\r\n\r\n"
    )
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"100 Continue" not in answer
    writer.close()


@pytest.mark.long
async def test_the_description_with_credentials_is_valid(service: Service) -> None:
    """It follows OpenAPI 3.1."""
    document = (await HttpClient(service).get("/openapi.json")).json
    OpenAPIV31SpecValidator(document).validate()


async def test_the_description_says_what_needs_credentials(service: Service) -> None:
    """And the page takes a key for its calls."""
    http = HttpClient(service)
    document = (await http.get("/openapi.json")).json
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    for route in all_routes():
        operation: Mapping[str, Any] = document["paths"][route.path][route.method.lower()]
        is_open = route.need.is_public or route.need.public_as == "docs"
        assert ("security" in operation) != is_open, route.path
        assert "www-authenticate" in operation["responses"]["401"]["headers"]
        assert "403" in operation["responses"]
    page = (await http.get("/docs")).body.decode()
    assert 'id="key"' in page
    secured = [one for one in all_routes() if one.needs_credentials({"docs"})]
    assert page.count("authorization: Bearer $KEY") == len(secured)
