"""Attacks on the HTTP port."""

import asyncio
import contextlib
import errno
import itertools
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from tests.attacks.attack import MIB, Attack
from tests.attacks.descriptors import allow_descriptors

_FLAGS = ("--http-address", "127.0.0.1:0")
_LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
# The attackers' addresses, all on this machine.
_CLIENTS = tuple(f"127.0.0.{number}" for number in range(2, 6))
_SLOW_CONNECTIONS = 10_000
# So many of them connect at once, before the others send.
_SLOW_AT_ONCE = 500
_SLOW_INTERVAL_S = 1.0
_SLOW_STEP_S = 0.02
# After this, a client whose connection was closed opens another; the known tool waits 15 s.
_SLOW_RETURN_S = 5.0
_DRIPPING = 200
_FLOODING = 8
_UNREAD = 16
_CHUNK_BYTES = 64 * 1024


def _post(body: bytes, *, size: int | None = None) -> bytes:
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n"
    )
    return head % (len(body) if size is None else size) + body


async def _open(target: str, client: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = target.rpartition(":")
    source = (_CLIENTS[client % len(_CLIENTS)], 0)
    return await asyncio.open_connection(host, int(port), local_addr=source)


async def _read_statuses(reader: asyncio.StreamReader, statuses: Counter[str]) -> None:
    """Read answers until the connection is closed."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            statuses[head.split()[1].decode()] += 1
            size = head.lower().partition(b"content-length: ")[2].split()[:1]
            await reader.readexactly(int(size[0]) if size else 0)


async def _send(target: str, client: int, parts: Iterator[bytes], statuses: Counter[str]) -> None:
    """Send on a connection until it is closed; read the answers meanwhile."""
    writer = None
    reading = None
    try:
        reader, writer = await _open(target, client)
        reading = asyncio.create_task(_read_statuses(reader, statuses))
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
            if reading.done():
                break
        await reading
    except OSError:
        statuses["closed"] += 1
        if writer is None:
            await asyncio.sleep(0.01)
        elif reading is not None:
            # The answer came before the end of what was sent.
            await asyncio.wait((reading,), timeout=1)
    finally:
        if reading is not None:
            reading.cancel()
        if writer is not None:
            writer.transport.abort()


async def _again_and_again(
    target: str, seconds: float, parts: Callable[[], Iterator[bytes]], *, at_once: int
) -> str:
    """Send the same on several connections, each anew once it is closed."""
    until = time.monotonic() + seconds
    statuses: Counter[str] = Counter()

    async def client(number: int) -> None:
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await _send(target, number, parts(), statuses)

    await asyncio.gather(*(client(number) for number in range(at_once)))
    return _tell(statuses)


def _tell(statuses: Counter[str]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in statuses.most_common()) or "nothing"


async def _slow(target: str, seconds: float) -> str:
    """Hold connections of few addresses open; each sends a byte of a request now and then."""
    return await asyncio.to_thread(_SlowCrowd(target).run, seconds)


class _SlowCrowd:
    """Clients that want a connection each, and come back some seconds after it was closed.

    It uses the system's calls alone: a thousandth of a second for each would be ten for all.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._poll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self._sent: dict[int, int] = {}
        # The clients without a connection, with the time at which they connect.
        self._away: deque[tuple[float, int]] = deque((0.0, one) for one in range(_SLOW_CONNECTIONS))
        self._numbers: dict[int, int] = {}
        self._met: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._most = 0
        self._tried = 0

    def run(self, seconds: float) -> str:
        """Attack; return what came of it."""
        allow_descriptors()
        until = time.monotonic() + seconds
        drip_at = time.monotonic()
        try:
            while (now := time.monotonic()) < until:
                for _ in range(_SLOW_AT_ONCE):
                    if self._away and self._away[0][0] <= now:
                        self._connect(self._away.popleft()[1])
                self._most = max(self._most, len(self._open))
                if now >= drip_at:
                    self._drip()
                    drip_at = now + _SLOW_INTERVAL_S
                for descriptor, _ in self._poll.poll(_SLOW_STEP_S):
                    self._read(descriptor)
        finally:
            for one in self._open.values():
                one.close()
            self._poll.close()
        told = ", ".join(f"{count} {what}" for what, count in sorted(self._counts.items()))
        return (
            f"{self._tried} connections, at most {self._most} at once; {len(self._met)} clients"
            f" sent something; {told}"
        )

    def _connect(self, number: int) -> None:
        self._tried += 1
        client = socket.socket()
        client.setblocking(False)
        client.bind((_CLIENTS[number % len(_CLIENTS)], 0))
        error = client.connect_ex(self._target)
        if error not in {0, errno.EINPROGRESS}:
            client.close()
            self._counts["refused"] += 1
            self._leave(number)
            return
        descriptor = client.fileno()
        self._open[descriptor], self._sent[descriptor] = client, 0
        self._numbers[descriptor] = number
        self._poll.register(descriptor, select.EPOLLIN)

    def _drip(self) -> None:
        for descriptor, client in list(self._open.items()):
            sent = self._sent[descriptor]
            try:
                client.send(_LIVE[sent : sent + 1])
            except BlockingIOError:
                # It waits for the server to accept it.
                continue
            except OSError:
                self._close(descriptor, "closed")
                continue
            self._met.add(self._numbers[descriptor])
            self._sent[descriptor] = (sent + 1) % len(_LIVE)

    def _read(self, descriptor: int) -> None:
        client = self._open.get(descriptor)
        if client is None:
            return
        try:
            data = client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._counts[f"x {data.split()[1].decode()}"] += 1
        else:
            self._close(descriptor, "closed")

    def _close(self, descriptor: int, how: str) -> None:
        self._counts[how] += 1
        self._poll.unregister(descriptor)
        self._open.pop(descriptor).close()
        self._leave(self._numbers.pop(descriptor))

    def _leave(self, number: int) -> None:
        self._away.append((time.monotonic() + _SLOW_RETURN_S, number))


async def _drip(target: str, seconds: float) -> str:
    """Send bodies of 4 MB byte by byte."""
    until = time.monotonic() + seconds
    statuses: Counter[str] = Counter()

    async def one(number: int) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                reader, writer = await _open(target, number)
                reading = asyncio.create_task(_read_statuses(reader, statuses))
                writer.write(_post(b'{"input": "', size=4 * MIB - 1024))
                while time.monotonic() < until and not reading.done():
                    writer.write(b"a")
                    await asyncio.wait((reading,), timeout=0.5)
                reading.cancel()
                writer.transport.abort()

    await asyncio.gather(*(one(number) for number in range(_DRIPPING)))
    return f"{_DRIPPING} connections; {_tell(statuses)}"


async def _unread(target: str, seconds: float) -> str:
    """Ask for large answers, and read none."""
    texts = b'{"input": [' + b",".join([b'"the same text"'] * 200) + b"]}"
    held = []
    for number in range(_UNREAD):
        with contextlib.suppress(OSError):
            reader, writer = await _open(target, number)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(_post(texts) * 8)
            held.append((reader, writer))
    await asyncio.sleep(seconds)
    for _, writer in held:
        writer.transport.abort()
    return f"{len(held)} connections whose answers are not read"


def _flood(
    parts: Callable[[], Iterator[bytes]], *, at_once: int = _FLOODING
) -> Callable[[str, float], Coroutine[Any, Any, str]]:
    async def run(target: str, seconds: float) -> str:
        return await _again_and_again(target, seconds, parts, at_once=at_once)

    return run


def _large_head() -> Iterator[bytes]:
    yield b"GET /info HTTP/1.1\r\nhost: x\r\n"
    line = b"x: " + b"a" * 4000 + b"\r\n"
    yield from itertools.repeat(line * 16, MIB // (16 * len(line)))
    yield b"\r\n"


def _large_body() -> Iterator[bytes]:
    yield _post(b"", size=100 * MIB)
    yield from itertools.repeat(b" " * _CHUNK_BYTES, 100 * MIB // _CHUNK_BYTES)


def _large_chunks() -> Iterator[bytes]:
    yield (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    chunk = b"%x\r\n%s\r\n" % (_CHUNK_BYTES, b" " * _CHUNK_BYTES)
    yield from itertools.repeat(chunk, 100 * MIB // _CHUNK_BYTES)
    yield b"0\r\n\r\n"


def _pipelined() -> Iterator[bytes]:
    yield from itertools.repeat(_LIVE * 1000)


def _pipelined_calls() -> Iterator[bytes]:
    yield from itertools.repeat(_post(b'{"input": "a short text"}') * 100)


def _bodies(*some: bytes) -> Callable[[], Iterator[bytes]]:
    requests = [_post(body) for body in some]
    return lambda: itertools.cycle(requests)


_BODY_BYTES = 4 * MIB - 1024
_DEEP = b'{"input": ' + b"[" * (_BODY_BYTES - 16)
_VALUES = b'{"input": [' + b"[]," * ((_BODY_BYTES - 32) // 3) + b"[]]}"
_MALFORMED = (
    b'{"input": "a", "dimensions": NaN}',
    b'{"input": "a", "dimensions": 1e999}',
    rb'{"input": "\ud800"}',
    b'{"input": "\xff"}',
    b'{"input": ' + b"[" * 10_000,
    b"{",
)


def _attack(name: str, what: str, run: Any, **more: Any) -> Attack:
    return Attack(name, what, run, flags=_FLAGS, over_http=True, **more)


ATTACKS = (
    _attack(
        "http-slow",
        "10,000 clients at four addresses, each with a request of a byte a second",
        _slow,
        in_suite=False,
    ),
    _attack("http-heads", "heads of 1 MB", _flood(_large_head), test_s=2.0),
    _attack("http-drip", "200 bodies of 4 MB, two bytes a second", _drip, test_s=2.0),
    _attack("http-pipelined", "probes, a thousand ahead", _flood(_pipelined), in_suite=False),
    _attack("http-ahead", "short calls, a hundred ahead", _flood(_pipelined_calls), test_s=2.0),
    _attack("http-unread", "large answers that are not read", _unread, test_s=2.0),
    _attack("http-body", "bodies of 100 MB", _flood(_large_body), in_suite=False),
    _attack("http-chunks", "bodies of 100 MB in chunks", _flood(_large_chunks), test_s=2.0),
    _attack("http-deep", "lists in lists, 4 MB", _flood(_bodies(_DEEP), at_once=4), in_suite=False),
    _attack("http-values", "4 MB of empty lists", _flood(_bodies(_VALUES), at_once=4), test_s=2.0),
    _attack(
        "http-malformed",
        "NaN, halves of surrogate pairs and other bad JSON",
        _flood(_bodies(*_MALFORMED), at_once=4),
        test_s=1.0,
    ),
)
