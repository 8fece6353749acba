"""How connections are listed, chosen and closed."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from embedgrpc.server.connections.activity import ConnectionActivity
from embedgrpc.server.connections.connection_table import Connection, ConnectionTable, address_of
from embedgrpc.server.connections.keeper import Candidate, Limits, choose
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.conftest import Serve
from tests.server.connections.raw_http2 import RawConnection, frame, headers, raw_connection
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.service import PATIENCE_S, Client, Service, until
from tests.server.services.test_health import NOT_SERVING, SERVING, Watcher

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
    """Return the port of a listening socket."""
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
def test_the_address_of_a_connection(peer: str, address: str) -> None:
    """It is the IPv4 address or the IPv6 network, in which a client can have many addresses."""
    assert address_of(peer) == address


def test_the_table_lists_the_connections_of_the_port(listener: socket.socket) -> None:
    """It lists neither the listener, nor the client's end, nor connections of another port."""
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


def test_ipv4_on_a_dual_stack_socket() -> None:
    """A peer has the same name as in gRPC."""
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


def test_a_descriptor_that_was_reused(listener: socket.socket) -> None:
    """`close` does not touch another file that has the descriptor of an ended connection."""
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


class _Context:
    """A fake of a call's context."""

    def peer(self) -> str:
        """Return a peer."""
        return "ipv4:10.0.0.7:40112"


async def test_a_connection_is_active_while_a_call_lasts() -> None:
    """A connection is idle from the end of its last call on, not from the beginning."""
    activity = ConnectionActivity(max_peers=1)
    seen: list[tuple[int, float]] = []

    async def behavior(request: Any, context: Any) -> bytes:
        del request
        seen.append((activity.of(context.peer()).calls, activity.of(context.peer()).active_at))
        raise LookupError

    async def find(details: Any) -> Any:
        del details
        return grpc.unary_unary_rpc_method_handler(behavior)

    details: Any = SimpleNamespace(method="/test.v1.Service/Method")
    handler: Any = await activity.intercept_service(find, details)
    with pytest.raises(LookupError):
        await handler.unary_unary(None, _Context())
    ((calls, began),) = seen
    after = activity.of(_Context().peer())
    assert calls == 1
    assert after.idle
    assert after.active_at > began


def candidates(**by_address: str) -> list[Candidate]:
    """Return connections by address, a letter each.

    i has made no call, u is idle between calls, q has a quiet stream, b is busy. The first ones
    have been idle for longest, and were seen first.
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
                    connection,
                    idle=state in "iu",
                    quiet=state in "iuq",
                    idle_since=float(position),
                    used=state == "u",
                )
            )
    return made


@pytest.mark.parametrize(
    ("by_address", "total", "closed"),
    [
        ({"a": "ii", "b": "i"}, 3, []),
        ({"a": "iii", "b": "i"}, 3, ["a0"]),
        # The largest address loses until it is no larger than the other; then the idlest goes.
        ({"a": "iiiii", "b": "ii"}, 3, ["a0", "a1", "a2", "b0"]),
        ({"a": "biiii", "b": "ii"}, 4, ["a1", "a2", "a3"]),
        # One that has made calls may be idle for longer.
        ({"a": "uiii"}, 3, ["a1"]),
        ({"a": "uii"}, 1, ["a1", "a2"]),
        # Connections with calls in flight stay, and others give way.
        ({"a": "bbbb", "b": "i"}, 4, ["b0"]),
        ({"a": "bbbq", "b": "b"}, 4, ["a3"]),
        # A connection with a quiet stream stays while there is an idle one.
        ({"a": "qqqq", "b": "i"}, 4, ["b0"]),
        ({"a": "bbbb", "b": "bb"}, 4, []),
        # Busy connections may be one and a half times as many.
        ({"a": "bbbb", "b": "b"}, 2, ["a3", "a2"]),
    ],
)
def test_connections_that_give_way(
    by_address: dict[str, str], total: int, closed: list[str]
) -> None:
    """The address with the most connections loses its idlest."""
    choice = choose(candidates(**by_address), Limits(total))
    assert [one.peer for one in choice.over_total] == closed
    assert choice.over_address == []


@pytest.mark.parametrize(
    ("states", "closed"),
    [("ii", []), ("iii", ["a0"]), ("bib", ["a1"]), ("bqb", ["a1"]), ("bbbb", ["a3", "a2"])],
)
def test_an_address_with_a_limit(states: str, closed: list[str]) -> None:
    """An address over its limit loses its idlest connections or, if none is idle, its newest."""
    choice = choose(candidates(a=states, b="i"), Limits(100, per_address=2))
    assert [one.peer for one in choice.over_address] == closed
    assert choice.over_total == []


async def test_idle_connections_give_way(serve: Serve, backend: HashBackend) -> None:
    """A new connection takes the place of an idle one; those with calls in flight stay."""
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
        # A health watch does not make a connection busy.
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


async def _embed_as_clients_do(client: Client) -> None:
    """Call once more if the connection is closed before the call has reached the server."""
    with suppress(grpc.aio.AioRpcError):
        await client.embed("let me in", wait_for_ready=True)
        return
    await client.embed("let me in", wait_for_ready=True)


async def test_idle_connections_lock_out_no_client(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A flood of idle connections locks out neither new clients nor probes."""
    service = await serve(max_connections=20, health_address="127.0.0.1:0")
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(asyncio.timeout(PATIENCE_S))
        for _ in range(6):
            for _ in range(40):
                attacker = await opened.enter_async_context(raw_connection(service.address))
                # It may be closed already.
                with suppress(ConnectionError):
                    await attacker.send(headers(WATCH), frame(b""))
            # gRPC may refuse it because connections come too fast; then it retries.
            newcomer = await service.connect(grpc__initial_reconnect_backoff_ms=100)
            await _embed_as_clients_do(newcomer)
            probe = Client(service.server.health_address)
            async with probe.channel:
                assert await probe.status("") == SERVING
        await until(lambda: value_of(service, "embedgrpc.connections.open") <= 20)
    (line,) = [one for one in caplog.records if one.message == "idle connections closed"]
    assert line.__dict__["largest_address"] == "127.0.0.1"
    assert line.__dict__["listener"] == "calls"


async def test_one_address_with_too_many(serve: Serve) -> None:
    """The address loses its idlest connection; those of another address stay."""
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
async def test_health_on_a_separate_listener(serve: Serve, tmp_path: Path, *, unix: bool) -> None:
    """It reports the same status as the main listener, and serves nothing else."""
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
    """Peers of a Unix socket have no names: new connections are refused, and the log says so."""
    service = await serve(address=f"unix:{tmp_path / 's'}", max_connections=1)
    await service.client.embed("a text")
    other = Client(service.address)
    async with other.channel:
        failure = await failure_of(other.embed("a text"))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    await service.client.embed("a text")
    assert any("new ones are refused" in one.message for one in caplog.records)


def value_of(service: Service, metric: str, **attributes: str) -> float:
    """Return the value of a metric of the server."""
    (value,) = [
        one.value
        for one in service.server.figures.read()
        if one.metric == metric
        and attributes.items() <= dict(one.attributes).items()
        and one.attributes.get("listener", "calls") == "calls"
    ]
    return value
