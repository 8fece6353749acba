"""Addresses that make many mistakes, or open many connections, are slowed down, and no others."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import pytest

from embedgrpc.server.connections import keeper
from embedgrpc.server.http import acceptor, listener, pace
from embedgrpc.server.http.acceptor import Acceptor
from embedgrpc.server.http.connection import ConnectionServer
from embedgrpc.server.http.pace import Pace, cost_s
from tests.server.conftest import Serve
from tests.server.http.http_client import HttpClient
from tests.server.http.test_hostile import BODY, LIVE, post
from tests.server.service import PATIENCE_S, Service, until

HERE, OTHER = "127.0.0.1", "127.0.0.2"
# Larger than what an address may take at once.
LONG_S = 100.0


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now


@pytest.fixture
def service(own_service: Service) -> Service:
    """A server of each test, as these change its pace."""
    return own_service


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


async def test_some_mistakes_are_free(clock: Clock) -> None:
    """Hundreds of small ones in a burst are answered at once, and forgotten soon."""
    one = Pace(clock)
    for _ in range(20):
        assert not any(one.charge(HERE, cost_s()) for _ in range(400))
        assert not one.is_slowed_down(HERE)
        clock.now += 5


@pytest.mark.parametrize(
    "cost", [cost_s(), cost_s(head_bytes=32_768), cost_s(body_bytes=4 * 1024 * 1024)]
)
async def test_mistakes_take_a_small_share_of_the_time(clock: Clock, cost: float) -> None:
    """A client that sends the next one after each answer takes a fiftieth of the loop."""
    one = Pace(clock)
    began, spent = clock.now, 0.0
    while clock.now < began + 1000:
        spent += cost
        clock.now += max(one.charge(HERE, cost), cost)
    assert 0.015 < spent / 1000 < 0.021


async def test_a_mistake_waits_ten_seconds_at_the_most(clock: Clock) -> None:
    """Many at once wait as long as one, and an address is free some seconds after the last."""
    one = Pace(clock)
    assert [one.charge(HERE, LONG_S) for _ in range(3)] == [pytest.approx(10.0)] * 3
    assert one.is_slowed_down(HERE)
    assert not one.is_slowed_down(OTHER)
    assert not one.charge(OTHER, cost_s())
    clock.now += 10.1
    assert not one.is_slowed_down(HERE)


async def test_few_connections_a_second(clock: Clock) -> None:
    """Beyond some at once, an address may open one every fiftieth of a second."""
    one = Pace(clock)
    taken = 0
    while one.may_connect(HERE):
        taken += 1
    assert taken == 51
    for _ in range(500):
        clock.now += 0.01
        taken += one.may_connect(HERE)
    assert taken == pytest.approx(51 + 5 * 50, abs=1)
    assert one.may_connect(OTHER)


async def test_few_addresses_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not seen for the longest time is forgotten first."""
    monkeypatch.setattr(pace, "_ADDRESSES_MAX", 3)
    one = Pace(clock)
    for address in ("a", "b", "c", "a", "d"):
        one.charge(address, LONG_S)
    assert [one.is_slowed_down(address) for address in "abcd"] == [True, False, True, True]


def pace_of(service: Service) -> Pace:
    """Return what slows down clients of a server's HTTP port."""
    assert service.server._http is not None
    return service.server._http._pace


@asynccontextmanager
async def connected(
    service: Service, source: str = HERE
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a server's HTTP port from an address."""
    host, _, port = service.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post(b'{"input": NaN}'), b"400"),
        (post(b'{"input": "a", "model": "unknown"}'), b"404"),
        (b"no HTTP\r\n\r\n", b"400"),
        (b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 9000), b"431"),
    ],
)
async def test_a_mistake_waits_and_nothing_else_does(
    service: Service, http: HttpClient, sent: bytes, status: bytes
) -> None:
    """Right requests of the same address are answered meanwhile; a stop ends the wait."""
    paced = pace_of(service)
    paced.charge(HERE, LONG_S)
    async with connected(service) as (reader, writer), asyncio.timeout(PATIENCE_S):
        writer.write(sent)
        answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        for _ in range(3):
            assert (await http.post("/v1/embeddings", {"input": "a"})).status == 200
        assert not answer.done()
        # While it waits, it holds nothing that others need.
        await until(lambda: not service.server.open_calls.limits.held_bytes)
        service.server._http.drain()  # type: ignore[union-attr] # it is there
        assert (await answer).split()[1] == status


async def test_other_addresses_do_not_wait(service: Service) -> None:
    """Their mistakes are answered at once."""
    pace_of(service).charge(HERE, LONG_S)
    async with connected(service, OTHER) as (reader, writer), asyncio.timeout(PATIENCE_S):
        writer.write(b"no HTTP\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"400"


async def _open_until_refused(service: Service, source: str, most: int) -> int:
    """Open connections, one after the other; return how many were served."""
    served = 0
    async with AsyncExitStack() as opened:
        for _ in range(most):
            try:
                reader, writer = await opened.enter_async_context(connected(service, source))
                writer.write(LIVE)
                await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            except (ConnectionError, asyncio.IncompleteReadError):
                break
            served += 1
    return served


async def test_an_address_cannot_churn_through_connections(
    serve: Serve, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all connections are taken, who has its share opens few more; others get in."""
    # On a slow machine idle connections would be closed meanwhile, and make room.
    monkeypatch.setattr(keeper, "_INTERVAL_S", 3600.0)
    monkeypatch.setattr(listener, "_REAP_INTERVAL_S", 3600.0)
    service = await serve(http_address="127.0.0.1:0", max_connections=40)
    pace_of(service)._clock = clock
    served = await _open_until_refused(service, HERE, 200)
    assert 40 <= served < 40 + 52
    assert await _open_until_refused(service, OTHER, 3) == 3


async def test_who_makes_mistakes_opens_few_connections(service: Service, clock: Clock) -> None:
    """Else it could leave before it has to wait, and come back."""
    paced = pace_of(service)
    paced._clock = clock
    paced.charge(HERE, LONG_S)
    assert await _open_until_refused(service, HERE, 100) == 51
    assert await _open_until_refused(service, OTHER, 3) == 3


async def test_few_connections_are_accepted_in_a_turn(service: Service) -> None:
    """A crowd that comes at once waits in the system's queue, and the loop goes on."""
    host, _, port = service.server.http_address.rpartition(":")
    crowd = []
    for _ in range(100):
        client = socket.create_connection((host, int(port)))
        crowd.append(client)
    server = service.server._http._server  # type: ignore[union-attr] # it is there
    seen = [0]
    while seen[-1] < len(crowd):
        await asyncio.sleep(0)
        seen.append(len(server.connections))
    assert max(after - before for before, after in pairwise(seen)) <= 8
    for client in crowd:
        client.close()


class _Exhausted(socket.socket):
    """A listening socket of a process that has no descriptors left, for a while."""

    refusals = 3

    def accept(self) -> tuple[socket.socket, object]:
        """Fail, or accept a connection."""
        if self.refusals:
            self.refusals -= 1
            raise OSError(24, "Too many open files")
        return super().accept()


async def test_without_descriptors_it_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that cannot be accepted do not keep the loop busy, and are served later."""
    monkeypatch.setattr(acceptor, "_PAUSE_S", 0.01)
    listening = _Exhausted()
    listening.bind((HERE, 0))

    async def answer(_: object) -> None:
        raise AssertionError("no request was sent")

    server = ConnectionServer(answer, connections=8, connections_max=8, pace=Pace())
    one = Acceptor(listening, server, None)
    one.start()
    _, writer = await asyncio.open_connection(*listening.getsockname())
    await until(lambda: server.connections)
    assert listening.refusals == 0
    assert len([entry for entry in caplog.records if "accepted" in entry.message]) == 3
    writer.close()
    await until(lambda: not server.connections)
    one.close()


async def test_a_body_that_is_right_costs_nothing(service: Service, http: HttpClient) -> None:
    """However many there are, no address is slowed down by requests that are answered."""
    for _ in range(20):
        assert (await http.post("/v1/embeddings", BODY)).status == 200
    assert not pace_of(service)._addresses
