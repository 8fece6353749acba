"""Mutated HTTP/2 frames, for a server on a socket: each input is all that a connection sends."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import hpack

from embedgrpc.v1 import embedding_service_pb2 as embedding
from tests.fuzz.fuzzed_server import fuzzed_server
from tests.fuzz.mutation import mutate_bytes, some
from tests.fuzz.target import Execute, Refusals, Target
from tests.server.connections.raw_http2 import PREFACE, frame, headers

_FIELDS = struct.Struct(">I")
_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _MORE = range(10)
_END_STREAM, _END_HEADERS = 1, 4
# The server must let go of a connection that its client has closed.
_CLOSE_S_MAX = 20.0
_CHECK_EVERY = 64
_HEADER_BYTES = 9
_KINDS_OF_REFUSALS = frozenset({_RESET, _GOAWAY})

_Frame = tuple[int, int, int, bytes]


def _call(stream: int, path: bytes, message: bytes) -> list[_Frame]:
    encoded = hpack.Encoder().encode(headers(path))
    return [
        (_HEADERS, _END_HEADERS, stream, encoded),
        (_DATA, _END_STREAM, stream, frame(message)),
    ]


_REQUEST = embedding.EmbedRequest(model="embed", texts=["a text"]).SerializeToString()
_SETUP = embedding.StreamEmbedRequest(setup=embedding.StreamEmbedSetup()).SerializeToString()
_FRAMES: tuple[_Frame, ...] = (
    (_SETTINGS, 0, 0, b""),
    (_SETTINGS, 0, 0, struct.pack(">HI", 4, 0) + struct.pack(">HI", 5, 16_384)),
    (_SETTINGS, 1, 0, b""),
    *_call(1, b"/embedgrpc.v1.EmbeddingService/Embed", _REQUEST),
    *_call(3, b"/grpc.health.v1.Health/Check", b""),
    *_call(5, b"/embedgrpc.v1.EmbeddingService/StreamEmbed", _SETUP),
    *_call(7, b"/nothing", b""),
    (_WINDOW, 0, 0, _FIELDS.pack(1000)),
    (_WINDOW, 0, 1, _FIELDS.pack(2**31 - 1)),
    (_PING, 0, 0, b"12345678"),
    (_PRIORITY, 0, 1, bytes(5)),
    (_RESET, 0, 1, _FIELDS.pack(8)),
    (_MORE, _END_HEADERS, 1, b"\x82"),
    (_PUSH, _END_HEADERS, 1, _FIELDS.pack(2) + b"\x82"),
    (_GOAWAY, 0, 0, bytes(8)),
    (0x42, 0, 1, b"unknown"),
)
_WORDS = (
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"\xff\xff\xff", b"\x00\x40\x00", b"\x01\x04",
    PREFACE, b"GET / HTTP/1.1\r\n\r\n", b"\x40\x01a\x01b", b"\x3f\xff\xff\xff\xff\x0f", b"\x80",
)  # fmt: skip


def _write(one: _Frame) -> bytes:
    kind, flags, stream, payload = one
    length = _FIELDS.pack(len(payload))[1:]
    return length + bytes([kind % 256, flags % 256]) + _FIELDS.pack(stream % 2**32) + payload


def _mutate(random: Random) -> bytes:
    frames = [_FRAMES[0], *_FRAMES[3:5]]
    for _ in range(some(random)):
        at = random.randrange(len(frames) + 1)
        chance = random.random()
        if chance < 0.5:
            frames.insert(at, random.choice(_FRAMES))
        elif chance < 0.6 and frames:
            del frames[at % len(frames)]
        elif frames:
            frames[at % len(frames)] = _changed(random, frames[at % len(frames)])
    content = b"".join(_write(one) for one in frames)
    if random.random() < 0.02:
        content = mutate_bytes(random, PREFACE, _WORDS) + content
    else:
        content = PREFACE + content
    if random.random() < 0.3:
        content = PREFACE + mutate_bytes(random, content[len(PREFACE) :], _WORDS)
    return content


def _changed(random: Random, one: _Frame) -> _Frame:
    kind, flags, stream, payload = one
    match random.randrange(4):
        case 0:
            kind = random.choice((*range(11), 255))
        case 1:
            flags ^= 1 << random.randrange(8)
        case 2:
            stream = random.choice((0, 1, 2, 3, 5, 7, 9, 2**31 - 1, 2**31, 2**32 - 1))
        case _:
            payload = mutate_bytes(random, payload, _WORDS)[:16_384]
    return kind, flags, stream, payload


@contextmanager
def _open(scratch: Path) -> Iterator[Execute]:
    with fuzzed_server(scratch) as server:
        host, _, port = server.address.rpartition(":")
        executions = 0

        def execute(content: bytes) -> None:
            nonlocal executions
            received = _send(host, int(port), content)
            if not _KINDS_OF_REFUSALS.isdisjoint(_kinds(received)):
                Refusals.count += 1
            executions += 1
            if executions % _CHECK_EVERY == 0:
                server.check()

        yield execute
        server.check()


def _send(host: str, port: int, content: bytes) -> bytes:
    """Send all that a connection says; return what came back until the server closed it."""
    received = b""
    with socket.create_connection((host, port), timeout=_CLOSE_S_MAX) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received += part
        except OSError as error:
            # The server had enough of it, which is one way to answer.
            if isinstance(error, TimeoutError):
                raise
    return received


def _kinds(received: bytes) -> Iterator[int]:
    """Yield the types of the frames that the server sent."""
    at = 0
    while at + _HEADER_BYTES <= len(received):
        yield received[at + 3]
        at += _HEADER_BYTES + int.from_bytes(received[at : at + 3])


TARGET = Target(
    name="http2-frames",
    what="frames of HTTP/2, to a server on a socket",
    mutate=_mutate,
    open=_open,
    test_runs=1000,
    memory_bytes=0,
    cpu_s=5.0,
)
