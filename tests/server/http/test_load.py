"""A stop under load, and clients that leave under load."""

import asyncio
import contextlib
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.server_process import started
from tests.server.service import PATIENCE_S, until

CONNECTIONS = 100


@pytest.mark.long
async def test_a_stop_under_load_loses_no_call(cache_dir: Path) -> None:
    """Calls in flight are answered; then new connections are refused, which clients retry."""
    failures: list[str] = []
    answered = 0
    flags = ("--http-address", "127.0.0.1:0", "--drain-delay-s", "0.5")
    async with started(*flags, cache_dir=cache_dir) as server:
        url = f"http://{(await server.until('listening'))['http_address']}"
        await server.until("serving")
        statuses: set[int] = set()

        async def call_until_refused(number: int) -> None:
            nonlocal answered
            timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                while True:
                    try:
                        async with session.post(
                            f"{url}/v1/embeddings", json={"input": f"text {number}"}
                        ) as response:
                            await response.read()
                            if response.status != 200:
                                failures.append(str(response.status))
                            answered += 1
                    except aiohttp.ClientConnectorError:
                        # A balancer would send it elsewhere.
                        return
                    except aiohttp.ClientError as error:
                        failures.append(repr(error))

        async def watch_readiness() -> None:
            async with aiohttp.ClientSession() as session:
                with contextlib.suppress(aiohttp.ClientError):
                    while True:
                        async with session.get(f"{url}/health/ready") as response:
                            statuses.add(response.status)
                        await asyncio.sleep(0.02)

        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            group.create_task(watch_readiness())
            await until(lambda: 200 in statuses)
            for number in range(CONNECTIONS):
                group.create_task(call_until_refused(number))
            await until(lambda: answered > 2 * CONNECTIONS)
            server.signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert not failures
    assert statuses == {200, 503}


async def test_clients_that_leave_under_load(serve: Serve, backend: HashBackend) -> None:
    """Their work leaves the queue, and all that they held is free at once."""
    service = await serve(backend=backend, http_address="127.0.0.1:0")
    http = HttpClient(service)
    await http.post("/v1/embeddings", {"input": "a text"})
    backend.hold()
    ran = backend.sequences
    calls = [
        asyncio.ensure_future(http.post("/v1/embeddings", {"input": [f"{number} a", "b"]}))
        for number in range(CONNECTIONS)
    ]
    await asyncio.to_thread(backend.running.wait, PATIENCE_S)
    await until(lambda: len(service.server.open_calls) == CONNECTIONS)
    stays = calls.pop()
    for call in calls:
        call.cancel()
    await until(lambda: len(service.server.open_calls) == 1)
    await until(lambda: service.server.open_calls.limits.requests.held < 1024)
    taken = backend.sequences - ran
    backend.release()
    assert (await stays).status == 200
    # Two texts of the call that stays; those of the others were dropped, but for the first batch.
    assert backend.sequences - ran <= taken + 2
    await until(lambda: not service.server.open_calls.limits.held_bytes)
    assert not service.server.open_calls.limits.places.held
