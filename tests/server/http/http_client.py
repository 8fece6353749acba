"""A client of a server's HTTP port."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.server.service import PATIENCE_S, Service


@dataclass(frozen=True)
class Reply:
    """A response, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class HttpClient:
    """Sends requests, each on a connection of its own."""

    def __init__(self, service: Service) -> None:
        self._url = f"http://{service.server.http_address}"

    @classmethod
    def at(cls, address: str) -> "HttpClient":
        """Return a client of a server in another process."""
        client = cls.__new__(cls)
        client._url = f"http://{address}"
        return client

    async def get(self, path: str, **headers: str) -> Reply:
        """Send a GET request."""
        return await self.send("GET", path, headers=headers)

    async def post(self, path: str, body: Any, **headers: str) -> Reply:
        """Send a POST request with a value as JSON, or with bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return await self.send("POST", path, data=data, headers=given)

    async def send(self, method: str, path: str, **request: Any) -> Reply:
        """Send a request of any kind."""
        if isinstance(request.get("data"), bytes):
            # Else aiohttp warns of large bodies.
            request["data"] = io.BytesIO(request["data"])
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, self._url + path, **request) as response,
        ):
            return Reply(response.status, response.headers, await response.read())
