"""The health check of the images, as Docker runs it: a command against a real server."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.service import CROSS, EMBED, PATIENCE_S, Service, serving, settings_for

PROBE = Path(__file__).parent.parent / "docker/probe.py"
EMBEDDING, RERANK = "embedgrpc.v1.EmbeddingService", "embedgrpc.v1.RerankService"


async def _probe(health_address: str, *services: str, address: str = "") -> tuple[int, str]:
    """Return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(PROBE), *services),
        stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "EMBEDGRPC_HEALTH_ADDRESS": health_address,
            "EMBEDGRPC_ADDRESS": address,
        },
    )
    async with asyncio.timeout(PATIENCE_S):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.fixture
async def service(cache_dir: Path) -> AsyncIterator[Service]:
    """A server that embeds and cannot rank, with a listener for probes."""
    settings = settings_for(cache_dir=cache_dir, health_address="127.0.0.1:0")
    async with serving(settings) as one:
        yield one


async def test_any_service_that_serves_is_enough(service: Service) -> None:
    """A line for each service; the exit code is that of the best."""
    address = service.server.health_address
    assert await _probe(address, EMBEDDING) == (0, "SERVING\n")
    assert await _probe(address) == (0, "SERVING\n")
    assert await _probe(address, "nobody", EMBEDDING, f"{EMBEDDING}/embed") == (
        0,
        "NOT_FOUND\nSERVING\nSERVING\n",
    )
    # All addresses of the machine, as an image may be told to listen.
    port = address.rpartition(":")[2]
    assert await _probe(f"0.0.0.0:{port}", EMBEDDING) == (0, "SERVING\n")


async def test_a_service_that_does_not_serve_is_not_healthy(
    cache_dir: Path, tmp_path: Path
) -> None:
    """Neither one whose models cannot do it, nor an unknown one, nor a Unix socket's."""
    address = f"unix:{tmp_path / 'health.sock'}"
    settings = settings_for(CROSS, cache_dir=cache_dir, health_address=address)
    async with serving(settings):
        assert await _probe(address, RERANK) == (0, "SERVING\n")
        code, output = await _probe(address, EMBEDDING, "nobody")
        assert (code, output.split()) == (1, ["NOT_SERVING", "NOT_FOUND"])


async def test_no_server_is_not_healthy(unused_tcp_port: int) -> None:
    """The reason is printed, for `docker inspect`."""
    address = f"127.0.0.1:{unused_tcp_port}"
    code, output = await _probe(address, EMBEDDING)
    assert code == 1
    assert output.startswith(f"{address}: ")
    assert "refused" in output


async def test_another_protocol_is_not_healthy() -> None:
    """What does not speak HTTP/2 is named, and not waited for."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        host, port = other.sockets[0].getsockname()
        code, output = await _probe(f"{host}:{port}", EMBEDDING)
    assert (code, output) == (1, f"{host}:{port}: it does not speak HTTP/2 without TLS\n")


@pytest.mark.long
async def test_without_a_listener_for_probes_the_command_answers(cache_dir: Path) -> None:
    """`embedgrpc health` knows every setting, and TLS."""
    async with serving(settings_for(EMBED, cache_dir=cache_dir)) as service:
        assert await _probe("", EMBEDDING, address=service.address) == (0, "SERVING\n")
