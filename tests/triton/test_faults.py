"""Faults of a real tritonserver as callers see them: it dies, hangs, changes or starts late."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from embedgrpc.v1 import common_pb2 as common
from tests.server.failures import failure_of
from tests.server.service import PATIENCE_S, until
from tests.server.services.test_health import NOT_SERVING, SERVING
from tests.server.streams import Stream
from tests.triton.environment import Environment
from tests.triton.made_up import write_embedding
from tests.triton.upstream import (
    MODEL,
    SOURCE,
    TEXTS,
    Upstream,
    in_front_of,
    recover,
    tell_time,
    under_load,
    until_held,
    until_status,
    vectors_of,
)

pytestmark = pytest.mark.triton

AWAY = (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")
CYCLES = 20


@pytest.fixture
def upstream(triton_environment: Environment, tmp_path: Path) -> Iterator[Upstream]:
    """A healthy tritonserver."""
    with Upstream(triton_environment, tmp_path / "first") as upstream:
        yield upstream


async def test_a_killed_server_lets_go_of_every_caller(upstream: Upstream, cache_dir: Path) -> None:
    """Calls and streams in progress end with the reason, each input once; later calls at once.

    After a restart at its address, the server is used again.
    """
    async with in_front_of(upstream, graphs=cache_dir) as service:
        before = await vectors_of(service)
        await until_status(service, SERVING)
        upstream.hold.touch()
        stream = await Stream.open(service.client)
        identifiers = [str(index) for index in range(40)]
        await stream.send(*((one, f"input {one}") for one in identifiers))
        calls = [
            asyncio.ensure_future(failure_of(service.client.embed(text))) for text in TEXTS[:8]
        ]
        await until_held(upstream)
        await asyncio.to_thread(upstream.server.kill)
        for failure in await asyncio.gather(*calls):
            assert (failure.code, failure.reason) == AWAY
        results = await stream.results(len(identifiers))
        assert sorted(one.id for one in results) == sorted(identifiers)
        assert {one.error.reason for one in results} == {common.ERROR_REASON_BACKEND_UNAVAILABLE}
        await stream.end()
        await until_status(service, NOT_SERVING)
        refused = await failure_of(service.client.embed("a call"))
        assert (refused.code, refused.reason) == AWAY
        assert refused.retry_delay_s
        upstream.hold.unlink()
        await asyncio.to_thread(upstream.server.start)
        await recover(service, time.monotonic(), "recovery after a kill")
        np.testing.assert_array_equal(await vectors_of(service), before)


async def test_load_survives_a_kill(upstream: Upstream, cache_dir: Path) -> None:
    """While a server is killed and restarted under load, calls get right answers or the reason."""
    async with in_front_of(upstream, graphs=cache_dir) as service, under_load(service) as load:
        await load.more(50)
        await asyncio.to_thread(upstream.server.kill)
        await until(lambda: load.failures)
        await until_status(service, NOT_SERVING)
        await asyncio.to_thread(upstream.server.start)
        since = time.monotonic()
        await load.more(50)
        tell_time("50 calls after a start under load", since)
    assert load.reasons == {AWAY}
    assert not load.wrong


@pytest.mark.usefixtures("often_checked")
async def test_a_paused_server_costs_no_more_than_the_deadline(
    upstream: Upstream, cache_dir: Path
) -> None:
    """Callers get their deadline, later ones a refusal; a resumed server is used again."""
    async with in_front_of(upstream, graphs=cache_dir) as service:
        before = await vectors_of(service)
        upstream.server.pause()
        patient = asyncio.ensure_future(failure_of(service.client.embed("a call")))
        calls = [service.client.embed(text, timeout=0.3) for text in TEXTS[:6]]
        for failure in await asyncio.gather(*map(failure_of, calls)):
            assert failure.code in (grpc.StatusCode.DEADLINE_EXCEEDED, AWAY[0])
        late = time.monotonic()
        await until_status(service, NOT_SERVING)
        tell_time("from the first deadlines to NOT_SERVING", late)
        given_up = await patient
        assert (given_up.code, given_up.reason) == AWAY
        refused = await failure_of(service.client.embed("a call"))
        assert (refused.code, refused.reason) == AWAY
        upstream.server.resume()
        await recover(service, time.monotonic(), "recovery after a pause")
        np.testing.assert_array_equal(await vectors_of(service), before)


async def test_an_unloaded_model_is_away(upstream: Upstream, cache_dir: Path) -> None:
    """Calls are refused as long as the model is unloaded."""
    async with in_front_of(upstream, graphs=cache_dir) as service:
        before = await vectors_of(service)
        await asyncio.to_thread(upstream.server.unload, "made-up")
        failure = await failure_of(service.client.embed("a call"))
        assert (failure.code, failure.reason) == AWAY
        await until_status(service, NOT_SERVING)
        await asyncio.to_thread(upstream.server.load, "made-up")
        await recover(service, time.monotonic(), "recovery after a load")
        np.testing.assert_array_equal(await vectors_of(service), before)


async def test_a_model_that_is_loaded_anew_costs_no_call(
    upstream: Upstream, cache_dir: Path
) -> None:
    """A model that is reloaded with other instances under load answers all calls."""
    async with in_front_of(upstream, graphs=cache_dir) as service, under_load(service) as load:
        for instances in (2, 1):
            await load.more(20)
            write_embedding(upstream.folder, "made-up", source=SOURCE, instances=instances)
            await asyncio.to_thread(upstream.server.load, "made-up")
        await load.more(20)
    assert not load.failures
    assert not load.wrong


@pytest.mark.usefixtures("often_checked")
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_model_of_another_size_is_refused(
    restarted: bool,  # noqa: FBT001 - pytest passes parameters by name
    upstream: Upstream,
    cache_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A different model under the same name returns no vectors; the log says why."""
    async with in_front_of(upstream, graphs=cache_dir) as service, under_load(service) as load:
        await load.more(20)
        write_embedding(upstream.folder, "made-up", source=SOURCE, dimensions=48)
        if restarted:
            await asyncio.to_thread(upstream.server.restart)
        else:
            await asyncio.to_thread(upstream.server.load, "made-up")
        await until_status(service, NOT_SERVING)
        await until(lambda: _logged(caplog, "endpoint serves another model: not used"))
        write_embedding(upstream.folder, "made-up", source=SOURCE)
        await asyncio.to_thread(upstream.server.load, "made-up")
        await load.more(20)
    assert not load.wrong
    assert load.reasons <= {AWAY, (grpc.StatusCode.INTERNAL, "BACKEND_FAILED")}
    (record,) = _logged(caplog, "endpoint serves another model: not used")
    assert record.__dict__["endpoint"] == upstream.server.address
    assert "48" in record.__dict__["problem"]


def _logged(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.getMessage() == message]


@pytest.fixture
def second(triton_environment: Environment, tmp_path: Path) -> Iterator[Upstream]:
    """A second tritonserver with the same model."""
    with Upstream(triton_environment, tmp_path / "second") as upstream:
        yield upstream


async def test_one_of_two_servers_may_die(
    upstream: Upstream, second: Upstream, cache_dir: Path
) -> None:
    """No call is lost when a server is killed; a server that returns gets its share again."""
    async with (
        in_front_of(upstream, second, graphs=cache_dir) as service,
        under_load(service, callers=8) as load,
    ):
        for victim in (upstream, second):
            await load.more(50)
            # So that a request is in progress when the server dies.
            held = victim.count("held")
            victim.hold.touch()
            await until_held(victim, held + 1)
            await asyncio.to_thread(victim.server.kill)
            victim.hold.unlink()
            await load.more(50)
            await asyncio.to_thread(victim.server.start)
            since = time.monotonic()
            victim.hold.touch()
            await until_held(victim, held + 2)
            tell_time("back at work beside another", since)
            victim.hold.unlink()
            await load.more(50)
    assert not load.failures
    assert not load.wrong


@pytest.mark.slow
async def test_one_of_two_servers_may_hang(
    upstream: Upstream, second: Upstream, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other server runs the requests that wait for a server that hangs."""
    caplog.set_level(logging.INFO)
    async with (
        in_front_of(upstream, second, graphs=cache_dir) as service,
        under_load(service, callers=8) as load,
    ):
        await load.more(20)
        held = upstream.count("held")
        upstream.hold.touch()
        await until_held(upstream, held + 1)
        upstream.server.pause()
        since = time.monotonic()
        await until(lambda: _logged(caplog, "endpoint lost"))
        tell_time("a hang beside another is seen", since)
        await load.more(50)
        upstream.hold.unlink()
        upstream.server.resume()
        await until(lambda: _logged(caplog, "endpoint back"))
    assert not load.failures
    assert not load.wrong


@pytest.mark.long
async def test_a_server_that_comes_and_goes_leaves_nothing(
    upstream: Upstream, cache_dir: Path
) -> None:
    """After many kills and restarts, this process holds no more resources than after the first."""
    first: Counter[str] = Counter()
    first_regions = 0
    loop = asyncio.get_running_loop()
    # One thread: the loop's own pool would grow, and change the count.
    with ThreadPoolExecutor(1) as pool:
        async with in_front_of(upstream, graphs=cache_dir) as service:
            for cycle in range(CYCLES):
                upstream.hold.touch()
                lost = [asyncio.ensure_future(failure_of(service.client.embed(TEXTS[0])))]
                await until_held(upstream, cycle + 1)
                await loop.run_in_executor(pool, upstream.server.kill)
                assert {(one.code, one.reason) for one in await asyncio.gather(*lost)} == {AWAY}
                upstream.hold.unlink()
                await loop.run_in_executor(pool, upstream.server.start)
                await recover(service, time.monotonic(), f"recovery after kill {cycle + 1}")
                if not cycle:
                    first, first_regions = holdings(), memory_regions()
            await until(lambda: holdings() <= first)
            # Allocators add a few mappings over time; a leak would add some in each cycle.
            assert memory_regions() < first_regions + CYCLES
    upstream.server.kill()
    assert not upstream.server.memory_regions


def holdings() -> Counter[str]:
    """Count the resources of this process that could leak."""
    return Counter(
        threads=threading.active_count(),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        tasks=len(asyncio.all_tasks()),
    )


def memory_regions() -> int:
    """Count the memory mappings of this process."""
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_who_leaves_takes_the_request_along(
    how: str, upstream: Upstream, cache_dir: Path
) -> None:
    """A cancelled or late call is dropped inside the server, and its lane becomes free."""
    async with in_front_of(upstream, graphs=cache_dir) as service:
        scheduler = service.server.catalog.find("far").ready().scheduler
        upstream.hold.touch()
        call = service.client.embed("a call", timeout=PATIENCE_S if how == "cancelled" else 0.3)
        running = asyncio.ensure_future(call)
        await until_held(upstream)
        if how == "cancelled":
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        else:
            assert (await failure_of(running)).code is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not scheduler._dispatcher.busy)
        # While the file exists, the model ends cancelled requests only.
        await until(lambda: upstream.count("dropped") == 1)
        upstream.hold.unlink()
        await service.client.embed("another call")
        assert await service.client.status(MODEL) == SERVING


async def test_a_server_that_comes_late_is_used_soon(upstream: Upstream, cache_dir: Path) -> None:
    """A model without its server is NOT_SERVING, and is served soon after the server starts."""
    upstream.server.kill()
    async with in_front_of(upstream, graphs=cache_dir) as service:
        await until_status(service, NOT_SERVING)
        failure = await failure_of(service.client.embed("a call"))
        assert (failure.code, failure.reason) == AWAY
        await asyncio.to_thread(upstream.server.start)
        await recover(service, time.monotonic(), "a server that came late")
