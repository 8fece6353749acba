"""An HTTP/2 client that sends anything, in any order."""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Answer:
    """The answer on one stream.

    Attributes:
        headers: All headers and trailers.
        body: All data.
        reset: The error code of a reset; None without one.
        ended: Set when the stream has ended.
    """

    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int | None:
        """The gRPC status; None where the stream ended without one."""
        value = self.headers.get(b"grpc-status")
        return None if value is None else int(value)


def frame(message: bytes, *, length: int | None = None) -> bytes:
    """Return a message with gRPC's prefix; `length` declares another length than the real one."""
    return b"\x00" + struct.pack(">I", len(message) if length is None else length) + message


def headers(path: bytes, *extra: tuple[bytes, bytes]) -> Headers:
    """Return the headers of a call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *extra,
    ]


class RawConnection:
    """One connection. It does not validate what it sends.

    Attributes:
        closed: Set when the server has closed it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.closed = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._answers: dict[int, Answer] = {}
        self._opened = asyncio.Event()
        self._pongs = 0
        self._ponged = asyncio.Condition()
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
            )
        )

    @property
    def max_streams(self) -> int:
        """How many concurrent calls the server allows."""
        return self._h2.remote_settings.max_concurrent_streams

    async def begin(self, *, window: int | None = None) -> None:
        """Send the preface and the settings.

        Args:
            window: The most unacknowledged bytes that the server may send on a stream; with 0 it
                can send no answers.
        """
        self._h2.initiate_connection()
        if window is not None:
            self._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        await self._flush()

    async def pour(self, stream: int, data: bytes) -> None:
        """Send data on a stream, as the flow control allows. The stream stays open."""
        while data and not self.closed.is_set() and not self._answers[stream].ended.is_set():
            size = min(
                self._h2.local_flow_control_window(stream),
                self._h2.max_outbound_frame_size,
                len(data),
            )
            if size <= 0:
                self._opened.clear()
                await self._opened.wait()
                continue
            self._h2.send_data(stream, data[:size])
            data = data[size:]
            await self._flush()

    async def send(self, request: Headers, *parts: bytes, end: bool = True) -> tuple[int, Answer]:
        """Send a call.

        Args:
            request: Its headers.
            parts: Its data, each part in a separate frame.
            end: Whether to end the stream.

        Returns:
            The number of the stream, and its answer, which is still to come.
        """
        stream = self._h2.get_next_available_stream_id()
        answer = self._answers[stream] = Answer()
        self._h2.send_headers(stream, request, end_stream=end and not parts)
        for position, part in enumerate(parts, start=1):
            self._h2.send_data(stream, part, end_stream=end and position == len(parts))
        await self._flush()
        return stream, answer

    async def call(self, request: Headers, *parts: bytes) -> Answer:
        """Send a call and wait for its end, or for that of the connection."""
        _, answer = await self.send(request, *parts)
        await answer.ended.wait()
        return answer

    async def reset(self, stream: int) -> None:
        """Reset a call."""
        self._h2.reset_stream(stream, error_code=8)
        await self._flush()

    async def ping(self) -> None:
        """Wait until the server has processed everything that was sent before."""
        before = self._pongs
        self._h2.ping(b"in order")
        await self._flush()
        async with self._ponged:
            await self._ponged.wait_for(lambda: self._pongs > before or self.closed.is_set())

    async def listen(self) -> None:
        """Read what the server sends until it closes the connection."""
        try:
            while data := await self._reader.read(65_536):
                for event in self._h2.receive_data(data):
                    await self._take(event)
                await self._flush()
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass  # the server may close the connection
        finally:
            self.closed.set()
            self._opened.set()
            for answer in self._answers.values():
                answer.ended.set()
            async with self._ponged:
                self._ponged.notify_all()

    async def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self._answers[event.stream_id].headers.update(_pairs(event.headers))
            case h2.events.DataReceived():
                self._answers[event.stream_id].body += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self._answers[event.stream_id].ended.set()
                self._opened.set()
            case h2.events.StreamReset():
                self._answers[event.stream_id].reset = event.error_code
                self._answers[event.stream_id].ended.set()
                self._opened.set()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._opened.set()
            case h2.events.PingAckReceived():
                async with self._ponged:
                    self._pongs += 1
                    self._ponged.notify_all()

    async def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()


@asynccontextmanager
async def raw_socket(
    address: str, *, source: str = ""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a TCP connection, from `source` if given, and send nothing."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(
        host, int(port), local_addr=(source, 0) if source else None
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def raw_connection(
    address: str, *, source: str = "", window: int | None = None
) -> AsyncIterator[RawConnection]:
    """Open an HTTP/2 connection, from `source` if given; see `RawConnection.begin`."""
    async with raw_socket(address, source=source) as (reader, writer):
        connection = RawConnection(reader, writer)
        await connection.begin(window=window)
        listening = asyncio.create_task(connection.listen())
        try:
            yield connection
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def _pairs(received: Sequence[tuple[bytes | str, bytes | str]] | None) -> dict[bytes, bytes]:
    return {
        key if isinstance(key, bytes) else key.encode(): value
        if isinstance(value, bytes)
        else value.encode()
        for key, value in received or ()
    }
