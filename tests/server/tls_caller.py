"""Calls both ports of a server over TLS."""

import asyncio
import json
import ssl
from typing import Any

import aiohttp
import grpc
import grpc.aio
import numpy as np
import pytest
from cryptography import x509

from embedgrpc.server.process.server import Server
from embedgrpc.v1 import embedding_service_pb2, embedding_service_pb2_grpc
from tests.authority import Pair
from tests.server.service import PATIENCE_S

TEXT = "a text over TLS"


class TlsCaller:
    """Calls both ports, each time on a new connection.

    Args:
        server: The server.
        ca: The authorities that it trusts, in PEM.
        pair: Its certificate, if any.
    """

    def __init__(self, server: Server, ca: bytes, pair: Pair | None = None) -> None:
        self._server = server
        self._ca = ca
        self._pair = pair

    async def over_grpc(self) -> list[float]:
        """Embed a text over gRPC."""
        async with self.channel() as channel:
            return await embed(channel)

    async def over_http(self) -> list[float]:
        """Embed a text over HTTP."""
        connector = aiohttp.TCPConnector(ssl=self.context())
        url = f"https://{self._server.http_address}/v1/embeddings"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(url, json={"input": TEXT}) as response,
        ):
            assert response.status == 200
            vector: list[float] = json.loads(await response.read())["data"][0]["embedding"]
            return [float(np.float32(one)) for one in vector]

    async def status(self, path: str, headers: dict[str, str]) -> int:
        """Get a path over HTTP; return the status."""
        connector = aiohttp.TCPConnector(ssl=self.context())
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"https://{self._server.http_address}{path}", headers=headers) as response,
        ):
            return response.status

    async def over_both(self) -> None:
        """Embed a text over each port; the vectors are equal."""
        assert await self.over_grpc() == await self.over_http()

    async def check_refused(self) -> None:
        """Check that neither port answers."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.over_grpc()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await self.over_http()

    def channel(self) -> grpc.aio.Channel:
        """Return a channel with a connection of its own."""
        own = self._pair
        credentials = grpc.ssl_channel_credentials(
            self._ca,
            own.key.read_bytes() if own else None,
            own.certificate.read_bytes() if own else None,
        )
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        return grpc.aio.secure_channel(self._server.address, credentials, options=options)

    def context(self) -> ssl.SSLContext:
        """Return what it trusts and presents, for Python's ssl."""
        context = ssl.create_default_context(cadata=self._ca.decode())
        if self._pair:
            context.load_cert_chain(self._pair.certificate, self._pair.key)
        return context

    async def names(self, host: str = "localhost") -> list[str]:
        """Return the names of the certificates that the two ports present for a host."""
        presented = []
        for address, protocol in (
            (self._server.address, "h2"),
            (self._server.http_address, "http/1.1"),
        ):
            context = self.context()
            context.check_hostname = False
            context.set_alpn_protocols([protocol])
            at, _, port = address.rpartition(":")
            async with asyncio.timeout(PATIENCE_S):
                _, writer = await asyncio.open_connection(
                    at, int(port), ssl=context, server_hostname=host
                )
            connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
            assert connection.selected_alpn_protocol() == protocol
            der = connection.getpeercert(binary_form=True)
            assert der is not None
            subject = x509.load_der_x509_certificate(der).subject
            presented.append(str(next(iter(subject)).value))
            writer.close()
        return presented


async def embed(channel: grpc.aio.Channel) -> list[float]:
    """Embed the text on an open channel."""
    stub: Any = embedding_service_pb2_grpc.EmbeddingServiceStub
    request = embedding_service_pb2.EmbedRequest(texts=[TEXT])
    response = await stub(channel).Embed(request, timeout=PATIENCE_S)
    return list(response.embeddings[0].dense.values)
