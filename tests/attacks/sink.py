"""What attacks are aimed at for comparison: it reads requests, and does nothing with them.

python -m tests.attacks.sink

The attacker, who shares the machine with the server, takes CPU time from all others. How much of
an effect that is, an attack on this process shows: it keeps the attacker as busy, and the server
has only its innocent callers. It writes its address, and ends when its standard input does.
"""

import asyncio
import sys
from typing import cast

import uvloop

_HEAD_BYTES_MAX = 32 * 1024
_BODY_BYTES_MAX = 4 * 1024 * 1024
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_CHUNKED_END = b"0\r\n\r\n"
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_REFUSAL = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Sink(asyncio.Protocol):
    """Answers each request once it is complete, and those that are too large at once."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._head = b""
        # What is left of a body; -1 for chunks.
        self._left = 0
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; asyncio calls this."""
        # uvloop's transports have no base class of asyncio.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        assert self._transport is not None
        answers = 0
        while data and not self._transport.is_closing():
            if self._left:
                data = self._read_body(data)
                answers += not self._left
                continue
            head, end, data = (self._head + data).partition(_HEAD_END)
            if len(head) > _HEAD_BYTES_MAX:
                self._refuse()
            elif not end:
                self._head = head
                break
            else:
                self._head = b""
                self._begin_body(head.lower())
                answers += not self._left
        if answers and not self._transport.is_closing():
            self._transport.write(_ANSWER * answers)

    def _begin_body(self, head: bytes) -> None:
        length = head.partition(_LENGTH)[2].split()[:1]
        self._size = 0
        self._left = -1 if b"chunked" in head else int(length[0]) if length else 0
        if self._left > _BODY_BYTES_MAX:
            self._refuse()

    def _read_body(self, data: bytes) -> bytes:
        """Drop a part of a body; return what comes after it."""
        if self._left > 0:
            taken = min(self._left, len(data))
            self._left -= taken
            return data[taken:]
        self._size += len(data)
        if self._size > _BODY_BYTES_MAX:
            self._refuse()
        if data.endswith(_CHUNKED_END):
            self._left = 0
        return b""

    def _refuse(self) -> None:
        assert self._transport is not None
        self._transport.write(_REFUSAL)
        self._transport.close()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Sink, "127.0.0.1", 0, backlog=4096)
    host, port = server.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)  # noqa: T201 - read by the caller
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_main())
