"""Callers of servers that want credentials."""

import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from embedgrpc.server.identity.api_keys import make_key
from embedgrpc.v1 import embedding_service_pb2
from tests.server.http.http_client import HttpClient
from tests.server.service import PATIENCE_S, Service, until


class KeyFile:
    """A file of API keys."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.toml"
        self._tables: dict[str, str] = {}
        self._write()

    def add(self, name: str, *lines: str) -> str:
        """Add a key, with further lines of its table; return it."""
        key, line = make_key()
        self._tables[key] = "\n".join(
            ["[[keys]]", f'name = "{name}"', f'key = "{line}"', *lines, ""]
        )
        self._write()
        return key

    def remove(self, key: str) -> None:
        """Take a key back."""
        del self._tables[key]
        self._write()

    def write(self, content: bytes) -> None:
        """Put something else into the place of the file, at once."""
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(self.path)

    def _write(self) -> None:
        self.write("\n".join(self._tables.values()).encode() or b"keys = []\n")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a server that reads it."""
        return {"api_keys_file": str(self.path), "credentials_reload_interval_s": 0.02}


class Answer:
    """How a call ended: "OK", or the label of its error."""

    def __init__(self, status: str, label: str, message: str) -> None:
        self.status = status
        self.label = label
        self.message = message

    def __eq__(self, other: object) -> bool:
        return (self.status, self.label) == other

    def __repr__(self) -> str:
        return f"{self.status} {self.label}: {self.message}"

    __hash__ = None  # type: ignore[assignment] # never looked up


OK = ("OK", "")


async def by_grpc(service: Service, *metadata: tuple[str, str], **request: Any) -> Answer:
    """Embed a text over gRPC with some metadata."""
    message = embedding_service_pb2.EmbedRequest(texts=["a text"], **request)
    try:
        await service.client.embedding.Embed(message, metadata=metadata, timeout=PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        return answer_of(error)
    return Answer("OK", "", "")


def answer_of(error: grpc.aio.AioRpcError) -> Answer:
    """How a call over gRPC ended."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    return Answer(error.code().name, info.metadata["label"], error.details() or "")


async def by_http(service: Service, *headers: tuple[str, str], **body: Any) -> Answer:
    """Embed a text over HTTP with some headers."""
    http = HttpClient(service)
    reply = await http.send(
        "POST",
        "/v1/embeddings",
        data=json.dumps({"input": "a text", **body}).encode(),
        headers=[("content-type", "application/json"), *headers],
    )
    if reply.status == 200:
        return Answer("OK", "", "")
    status = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 503: "UNAVAILABLE"}
    error = reply.json["error"]
    assert (reply.status == 401) == ("www-authenticate" in reply.headers)
    return Answer(status[reply.status], (error["code"] or "").upper(), error["message"])


async def by_both(service: Service, *metadata: tuple[str, str], **request: Any) -> Answer:
    """Embed a text over both; they must answer alike."""
    one = await by_grpc(service, *metadata, **request)
    other = await by_http(service, *metadata, **request)
    assert (one.status, one.message) == (other.status, other.message), (one, other)
    return one


def bearer(credentials: str) -> tuple[str, str]:
    """The metadata that carries a key or a token."""
    return ("authorization", f"Bearer {credentials}")


async def reloaded(service: Service, setting: str, outcome: str, *, times: int = 1) -> None:
    """Wait until a file was loaded again, or refused, so many times."""
    await until(
        lambda: (
            [
                one.value
                for one in service.server.figures.read()
                if one.metric == "embedgrpc.credentials.reloads"
                and one.attributes == {"setting": setting, "outcome": outcome}
            ]
            >= [times]
        )
    )
