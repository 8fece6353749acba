"""The example of Envoy, with real clients and a real server behind it."""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import aiohttp
import grpc
import pytest

from embedgrpc.client import (
    AsyncClient,
    EmbedGrpcError,
    EmptyInputError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.envoy.proxy import PATIENCE_S, Proxy, running_envoy
from tests.server.service import CROSS, EMBED, Service, serving, settings_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(4 * PATIENCE_S)]

EMBED_PATH = "/embedgrpc.v1.EmbeddingService/Embed"
TEXTS = ["The tower is 330 metres tall.", "Rivers flow to the sea."]


@pytest.fixture
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server that believes Envoy who calls."""
    settings = settings_for(EMBED, CROSS, cache_dir=cache_dir, caller_metadata="x-caller")
    async with serving(settings) as one:
        yield one


@pytest.fixture
async def proxy(envoy: Path, service: Service, tmp_path: Path) -> AsyncIterator[Proxy]:
    """Envoy in front of it."""
    async with running_envoy(envoy, tmp_path, [service.address]) as one:
        yield one


def _client(proxy: Proxy, token: str = "", **options: Any) -> AsyncClient:
    token = token or proxy.issuer.issue("alice")
    return AsyncClient(
        f"localhost:{proxy.port}", ca_file=str(proxy.ca_file), token=token, **options
    )


class Http:
    """HTTP/1.1 with a token."""

    def __init__(self, proxy: Proxy) -> None:
        context = ssl.create_default_context(cafile=str(proxy.ca_file))
        self._session = aiohttp.ClientSession(
            f"https://localhost:{proxy.port}", connector=aiohttp.TCPConnector(ssl=context)
        )
        self._token = proxy.issuer.issue("alice")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(
        self, method: str, path: str, *, known: bool = True, **request: Any
    ) -> tuple[int, bytes, Any]:
        """Return status, body and headers."""
        headers = request.pop("headers", {})
        if known:
            headers = {"authorization": f"Bearer {self._token}"} | headers
        async with self._session.request(method, path, headers=headers, **request) as response:
            return response.status, await response.read(), response.headers


async def test_grpc_passes_unchanged(proxy: Proxy, service: Service) -> None:
    """Vectors, streams and the reasons of errors are those of the server."""
    direct = await service.client.embed(*TEXTS)
    async with _client(proxy) as client:
        result = await client.embed(TEXTS)
        assert result.fingerprint == direct.fingerprint
        assert result.vectors[0].tolist() == pytest.approx(
            list(direct.embeddings[0].dense.values), abs=1e-6
        )
        async with client.embed_stream((str(i), text) for i, text in enumerate(TEXTS)) as stream:
            assert {one.id async for one in stream} == {"0", "1"}
        with pytest.raises(EmptyInputError) as caught:
            await client.embed([" "])
        assert [one.field for one in caught.value.field_violations] == ["texts[0]"]


async def test_json_is_transcoded(proxy: Proxy) -> None:
    """A request as JSON over HTTP/1.1; an error has its reason as JSON, too."""
    async with Http(proxy) as http:
        status, body, _ = await http.send("POST", EMBED_PATH, json={"texts": TEXTS})
        answer = json.loads(body)
        assert status == 200
        assert len(answer["embeddings"]) == 2
        assert answer["usage"]["inputTokens"] > 0
        status, body, _ = await http.send("POST", EMBED_PATH, json={"texts": [""]})
        assert status == 400
        (reason,) = [one["reason"] for one in json.loads(body)["details"] if "reason" in one]
        assert reason == "EMPTY_INPUT"
        status, body, _ = await http.send("POST", EMBED_PATH, json={"text": TEXTS})
        assert (status, b"Embed" in body or b"text" in body) == (400, True)


async def test_grpc_web_is_translated(proxy: Proxy) -> None:
    """A browser's call, with its preflight: the message, then trailers in the body."""
    message = pb.EmbedRequest(texts=TEXTS).SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    origin = {"origin": "https://app.example.com"}
    async with Http(proxy) as http:
        preflight = origin | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,x-grpc-web,authorization",
        }
        status, _, headers = await http.send("OPTIONS", EMBED_PATH, known=False, headers=preflight)
        assert status == 200
        assert headers["access-control-allow-origin"] == origin["origin"]
        for kind in ("application/grpc-web+proto", "application/grpc-web-text+proto"):
            sent = base64.b64encode(body) if "text" in kind else body
            call = origin | {"content-type": kind, "accept": kind, "x-grpc-web": "1"}
            status, answer, headers = await http.send("POST", EMBED_PATH, headers=call, data=sent)
            assert status == 200
            assert headers["access-control-allow-origin"] == origin["origin"]
            if "text" in kind:
                # Each part that was sent is padded.
                parts = (answer[at : at + 4] for at in range(0, len(answer), 4))
                answer = b"".join(map(base64.b64decode, parts))
            size = int.from_bytes(answer[1:5], "big")
            assert len(pb.EmbedResponse.FromString(answer[5 : 5 + size]).embeddings) == 2
            assert answer[5 + size] == 0x80
            assert b"grpc-status:0" in answer[5 + size :]
        # Another page's preflight gets no permission.
        other = preflight | {"origin": "https://elsewhere.example"}
        _, _, headers = await http.send("OPTIONS", EMBED_PATH, known=False, headers=other)
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        ({"aud": "others"}, PermissionDeniedError),
        ({"iss": "https://elsewhere.example/"}, UnauthenticatedError),
        ({"exp": int(time.time()) - 3600}, UnauthenticatedError),
    ],
    ids=["audience", "issuer", "expired"],
)
async def test_tokens_for_others_are_refused(
    claims: dict[str, Any], error: type[Exception], proxy: Proxy
) -> None:
    """Envoy answers; the server sees no call."""
    before = await proxy.count("cluster.embedgrpc.upstream_rq_total")
    async with _client(proxy, proxy.issuer.issue("alice", **claims)) as client:
        with pytest.raises(error):
            await client.embed(TEXTS)
    assert await proxy.count("cluster.embedgrpc.upstream_rq_total") == before


async def test_without_a_token_only_probes_are_answered(proxy: Proxy, service: Service) -> None:
    """No token, a token signed by somebody else, and `alg: none`."""
    forged = proxy.issuer.issue("alice").rpartition(".")[0]
    async with Http(proxy) as http:
        assert (await http.send("GET", "/healthz", known=False))[0] == 200
        assert (await http.send("POST", EMBED_PATH, known=False, json={"texts": TEXTS}))[0] == 401
        headers = {"authorization": f"Bearer {forged}.{'A' * 86}"}
        status, _, _ = await http.send("POST", EMBED_PATH, headers=headers, json={"texts": TEXTS})
        assert status == 401
    del service


async def test_only_calls_of_the_contract_reach_the_server(proxy: Proxy, service: Service) -> None:
    """Health, reflection, other paths, and paths that are no text."""
    before = await proxy.count("cluster.embedgrpc.upstream_rq_total")
    async with Http(proxy) as http:
        for path in (
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/embedgrpc.v1.AdminService/GetStatus",
            "/metrics",
            "/embedgrpc.v1.EmbeddingService/Embed/more",
            "/embedgrpc.v1.EmbeddingService/Nothing",
        ):
            status, _, _ = await http.send("POST", path, json={})
            assert status in (400, 404), path
    metadata = (("authorization", f"Bearer {proxy.issuer.issue('alice')}"),)
    credentials = grpc.ssl_channel_credentials(proxy.ca_file.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{proxy.port}", credentials) as channel:
        open_call: Any = channel.unary_unary
        raw = open_call(b"/embedgrpc.v1.EmbeddingService/\xff\xfe")
        with pytest.raises(grpc.aio.AioRpcError):
            await raw(b"", timeout=PATIENCE_S, metadata=metadata)
    assert await proxy.count("cluster.embedgrpc.upstream_rq_total") == before
    await service.check_alive()


async def test_a_caller_has_a_limit_of_its_own(
    envoy: Path, service: Service, tmp_path: Path
) -> None:
    """Who calls too often is refused, and nobody else. A name in a header does not count."""
    async with AsyncExitStack() as stack:
        running = running_envoy(envoy, tmp_path, [service.address], calls_per_s=5)
        proxy = await stack.enter_async_context(running)
        alice = await stack.enter_async_context(_client(proxy))
        bob = await stack.enter_async_context(_client(proxy, proxy.issuer.issue("bob")))

        async def ask(client: AsyncClient) -> bool:
            try:
                await client.list_models()
            except EmbedGrpcError as error:
                if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return False
                raise
            return True

        asked = await asyncio.gather(*(ask(alice) for _ in range(200)))
        assert 5 <= sum(asked) < 200
        assert await ask(bob)
        spoofed = _client(proxy, proxy.issuer.issue("carol"), metadata=(("x-caller", "alice"),))
        async with spoofed as carol:
            assert await ask(carol)
