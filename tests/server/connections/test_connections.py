"""Connections are listed, chosen and closed as they should be."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from embedgrpc.server.connections.connection_table import Connection, ConnectionTable, address_of
from embedgrpc.server.connections.keeper import Candidate, Limits, choose
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.connections.raw_http2 import RawConnection, frame, headers, raw_connection
from tests.server.failures import failure_of
from tests.server.fake_backend import FakeBackend
from tests.server.service import PATIENCE_S, Client, Service, until
from tests.server.services.test_health import NOT_SERVING, SERVING, Watcher

Serve = Callable[..., Awaitable[Service]]

EMBED = b"/embedgrpc.v1.EmbeddingService/Embed"
WATCH = b"/grpc.health.v1.Health/Watch"
REQUEST = pb.EmbedRequest(texts=["a text"]).SerializeToString()
OK = grpc.StatusCode.OK.value[0]
STREAM = b"/embedgrpc.v1.EmbeddingService/StreamEmbed"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket of this process."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def port_of(listener: socket.socket) -> int:
    """The port that it listens on."""
    port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:40112", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:40112", "2001:db8:1:2::/64"),
        ("ipv6:[::1]:40112", "::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:40112", "fe80::/64"),
        ("unix:", "unix"),
        ("unix:/run/s", "unix"),
    ],
)
def test_whom_a_connection_counts_for(peer: str, address: str) -> None:
    """It is the address, or the network where a client can have many addresses."""
    assert address_of(peer) == address


def test_the_table_lists_what_is_connected_to_the_port(listener: socket.socket) -> None:
    """Neither the listener, nor the client's end, nor another port's connections are listed."""
    table = ConnectionTable(port_of(listener))
    with ExitStack() as opened:
        other = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        opened.enter_context(socket.create_connection(other.getsockname()))
        opened.enter_context(other.accept()[0])
        assert table.read() == []
        client = opened.enter_context(socket.create_connection(listener.getsockname()))
        accepted = opened.enter_context(listener.accept()[0])
        (connection,) = table.read()
        assert connection.descriptor == accepted.fileno()
        assert connection.peer == "ipv4:127.0.0.1:{1}".format(*client.getsockname())
        assert table.estimate() == 1
        assert table.close(connection)
        assert client.recv(1) == b""
        assert table.read() == []


def test_ipv4_on_a_socket_of_both_kinds() -> None:
    """A peer has the name that gRPC gives it."""
    with ExitStack() as opened:
        listener = opened.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        table = ConnectionTable(port_of(listener))
        for host in ("127.0.0.1", "::1"):
            opened.enter_context(socket.create_connection((host, port_of(listener))))
            opened.enter_context(listener.accept()[0])
        kinds = {one.peer.rpartition(":")[0] for one in table.read()}
        assert kinds == {"ipv4:127.0.0.1", "ipv6:%5B::1%5D"}


def test_a_number_that_was_taken_again(listener: socket.socket) -> None:
    """Whoever has the descriptor of a connection that ended is left alone."""
    table = ConnectionTable(port_of(listener))
    with ExitStack() as opened:
        opened.enter_context(socket.create_connection(listener.getsockname()))
        accepted = listener.accept()[0]
        (connection,) = table.read()
        one, other = socket.socketpair()
        opened.enter_context(one)
        opened.enter_context(other)
        os.dup2(one.fileno(), accepted.fileno())
        opened.enter_context(accepted)
        assert not table.close(connection)
        one.sendall(b"x")
        assert other.recv(1) == b"x"


def candidates(**by_address: str) -> list[Candidate]:
    """Makes connections of addresses: i is idle, q has a quiet stream, b is busy.

    Those that stand first have been idle for longest, and were seen first.
    """
    made: list[Candidate] = []
    for address, states in by_address.items():
        for position, state in enumerate(states):
            connection = Connection(
                inode=len(made) + 1,
                descriptor=0,
                peer=f"{address}{position}",
                address=address,
                seen_at=position,
                active_at=0,
            )
            made.append(
                Candidate(
                    connection, idle=state == "i", quiet=state in "iq", idle_since=float(position)
                )
            )
    return made


@pytest.mark.parametrize(
    ("by_address", "total", "closed"),
    [
        ({"a": "ii", "b": "i"}, 3, []),
        ({"a": "iii", "b": "i"}, 3, ["a0"]),
        # The largest loses until it is no larger than others; then the idlest goes.
        ({"a": "iiiii", "b": "ii"}, 3, ["a0", "a1", "a2", "b0"]),
        ({"a": "biiii", "b": "ii"}, 4, ["a1", "a2", "a3"]),
        # What is in flight stays, and others give way.
        ({"a": "bbbb", "b": "i"}, 4, ["b0"]),
        ({"a": "bbbq", "b": "b"}, 4, ["a3"]),
        # A quiet stream lives on while there is an idle connection.
        ({"a": "qqqq", "b": "i"}, 4, ["b0"]),
        ({"a": "bbbb", "b": "bb"}, 4, []),
        # Half as many again is enough.
        ({"a": "bbbb", "b": "b"}, 2, ["a3", "a2"]),
    ],
)
def test_who_gives_way(by_address: dict[str, str], total: int, closed: list[str]) -> None:
    """The address with the most connections loses its idlest."""
    choice = choose(candidates(**by_address), Limits(total))
    assert [one.peer for one in choice.over_total] == closed
    assert choice.over_address == []


@pytest.mark.parametrize(
    ("states", "closed"),
    [("ii", []), ("iii", ["a0"]), ("bib", ["a1"]), ("bqb", ["a1"]), ("bbbb", ["a3", "a2"])],
)
def test_an_address_with_a_limit(states: str, closed: list[str]) -> None:
    """It loses its idlest connections, and where none is idle its newest."""
    choice = choose(candidates(a=states, b="i"), Limits(100, per_address=2))
    assert [one.peer for one in choice.over_address] == closed
    assert choice.over_total == []


async def test_idle_connections_give_way(serve: Serve, backend: FakeBackend) -> None:
    """A newcomer takes the place of one without work; what is in flight stays."""
    service = await serve(backend=backend, max_connections=4)
    backend.hold()
    async with AsyncExitStack() as opened:

        async def connect() -> RawConnection:
            connection = await opened.enter_async_context(raw_connection(service.address))
            await connection.ping()
            return connection

        await opened.enter_async_context(asyncio.timeout(PATIENCE_S))
        working, streaming, watching, silent = [await connect() for _ in range(4)]
        _, answer = await working.send(headers(EMBED), frame(REQUEST))
        assert await asyncio.to_thread(backend.running.wait, PATIENCE_S)
        await streaming.send(headers(STREAM), end=False)
        # Health is asked by what has nothing else to do.
        await watching.send(headers(WATCH), frame(b""))
        # The kernel's clock of connections may have steps of 10 ms.
        await asyncio.sleep(0.05)
        newcomers = [await connect() for _ in range(2)]
        await watching.closed.wait()
        await silent.closed.wait()
        backend.release()
        await answer.ended.wait()
        assert answer.status == OK
        assert not any(one.closed.is_set() for one in (working, streaming, *newcomers))
        assert value_of(service, "embedgrpc.connections.closed", limit="total") == 2
        assert value_of(service, "embedgrpc.connections.open") == 4
    await service.check_alive()


async def test_nobody_is_locked_out(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Far more idle connections than there may be keep no newcomer and no probe out."""
    service = await serve(max_connections=20, health_address="127.0.0.1:0")
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(asyncio.timeout(PATIENCE_S))
        for _ in range(6):
            for _ in range(40):
                attacker = await opened.enter_async_context(raw_connection(service.address))
                # It may have been closed by now.
                with suppress(ConnectionError):
                    await attacker.send(headers(WATCH), frame(b""))
            # One that gRPC refused, for they come too fast, tries again.
            newcomer = await service.connect(grpc__initial_reconnect_backoff_ms=100)
            await newcomer.embed("let me in", wait_for_ready=True)
            probe = Client(service.server.health_address)
            async with probe.channel:
                assert await probe.status("") == SERVING
        await until(lambda: value_of(service, "embedgrpc.connections.open") <= 20)
    (line,) = [one for one in caplog.records if one.message == "idle connections closed"]
    assert line.__dict__["largest_address"] == "127.0.0.1"
    assert line.__dict__["listener"] == "calls"


async def test_one_address_with_too_many(serve: Serve) -> None:
    """It loses its idlest connection; those of another address stay."""
    service = await serve(max_connections_per_address=2)
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(asyncio.timeout(PATIENCE_S))
        other = await opened.enter_async_context(
            raw_connection(service.address, source="127.0.0.2")
        )
        own = []
        for _ in range(3):
            own.append(await opened.enter_async_context(raw_connection(service.address)))
            await own[-1].ping()
            await asyncio.sleep(0.05)
        await own[0].closed.wait()
        assert not any(one.closed.is_set() for one in (other, *own[1:]))


@pytest.mark.parametrize("unix", [False, True], ids=["port", "unix"])
async def test_health_on_a_listener_of_its_own(serve: Serve, tmp_path: Path, *, unix: bool) -> None:
    """It says what the other says, follows it, and serves nothing else."""
    address = f"unix:{tmp_path / 's'}" if unix else "127.0.0.1:0"
    service = await serve(health_address=address)
    client = Client(service.server.health_address)
    async with client.channel:
        assert await client.status("") == SERVING
        assert await client.status("embedgrpc.v1.EmbeddingService/embed") == SERVING
        assert (await failure_of(client.embed("a text"))).code is grpc.StatusCode.UNIMPLEMENTED
        watcher = Watcher(client, "")
        assert await watcher.next() == SERVING
        await service.server.drain()
        assert await watcher.next() == NOT_SERVING


async def test_where_connections_cannot_be_listed(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over a Unix socket nobody has a name: new connections are refused, and the log says so."""
    service = await serve(address=f"unix:{tmp_path / 's'}", max_connections=1)
    await service.client.embed("a text")
    other = Client(service.address)
    async with other.channel:
        failure = await failure_of(other.embed("a text"))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    await service.client.embed("a text")
    assert any("new ones are refused" in one.message for one in caplog.records)


def value_of(service: Service, metric: str, **attributes: str) -> float:
    """What a counter of the server stands at."""
    (value,) = [
        one.value
        for one in service.server._read()
        if one.metric == metric
        and attributes.items() <= dict(one.attributes).items()
        and one.attributes.get("listener", "calls") == "calls"
    ]
    return value
