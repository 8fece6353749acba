"""How much the retries of a client, of Envoy and of both together add to the calls that fail."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from embedgrpc.client import AsyncClient, EmbedGrpcError
from embedgrpc.v1 import embedding_service_pb2_grpc
from tests.envoy.proxy import running_envoy

_CALLERS = 64
_PAUSE_S = 0.02
_NO_LIMIT_PER_S = 100_000


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls that were made, and those that reached a server.

    Attributes:
        offered: By the callers.
        attempts: By servers, retries included.
    """

    offered: int
    attempts: int

    @property
    def amplification(self) -> float:
        """Attempts for each call."""
        return self.attempts / self.offered


class _Refusing(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Refuses every call, as servers do that are gone or overloaded, and says that it is well."""

    def __init__(self, code: grpc.StatusCode, pushback_ms: int | None) -> None:
        self.attempts = 0
        self._code = code
        self._metadata = (
            () if pushback_ms is None else (("grpc-retry-pushback-ms", str(pushback_ms)),)
        )

    async def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802 - of the contract
        """Count the call and refuse it."""
        del request
        self.attempts += 1
        await context.abort(self._code, "no", self._metadata)


async def storm(envoy: Path, folder: Path, *, seconds: float) -> dict[str, Counts]:
    """Call servers that refuse everything, through Envoy; return the counts by kind of refusal."""
    kinds = {
        "unavailable": (grpc.StatusCode.UNAVAILABLE, None),
        "overloaded": (grpc.StatusCode.RESOURCE_EXHAUSTED, 100),
    }
    found = {}
    for name, (code, pushback_ms) in kinds.items():
        place = folder / name
        place.mkdir()
        async with _refusing(code, pushback_ms) as one, _refusing(code, pushback_ms) as other:
            addresses = [address for _, address in (one, other)]
            running = running_envoy(envoy, place, addresses, calls_per_s=_NO_LIMIT_PER_S)
            async with (
                running as proxy,
                AsyncClient(
                    f"localhost:{proxy.port}",
                    ca_file=str(proxy.ca_file),
                    token=proxy.issuer.issue("alice"),
                ) as client,
            ):
                offered = await _call(client, time.monotonic() + seconds)
            found[name] = Counts(offered, sum(servicer.attempts for servicer, _ in (one, other)))
    return found


async def _call(client: AsyncClient, until_s: float) -> int:
    offered = 0

    async def caller() -> None:
        nonlocal offered
        while time.monotonic() < until_s:
            offered += 1
            with suppress(EmbedGrpcError):
                await client.embed(["a text"])
            await asyncio.sleep(_PAUSE_S)

    await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    return offered


@asynccontextmanager
async def _refusing(
    code: grpc.StatusCode, pushback_ms: int | None
) -> AsyncIterator[tuple[_Refusing, str]]:
    server = grpc.aio.server()
    servicer = _Refusing(code, pushback_ms)
    add: Any = embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server
    add(servicer, server)
    well = health.aio.HealthServicer()
    await well.set(
        "embedgrpc.v1.EmbeddingService", health_pb2.HealthCheckResponse.ServingStatus.SERVING
    )
    health_pb2_grpc.add_HealthServicer_to_server(well, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
