"""Asks the health listener of the server in this container, in the time that Python takes to start.

python -I -S probe.py SERVICE...     exits with 0 if any of them is SERVING, else with 1

It speaks just enough HTTP/2 for `grpc.health.v1.Health/Check`, with nothing but the standard
library. Where EMBEDGRPC_HEALTH_ADDRESS is empty it leaves the question to `embedgrpc health`, which
knows every setting and takes thirty times as long.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK), gRPC over HTTP/2.
"""

import os
import socket
import sys
import time

_TIMEOUT_S = 4.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # noqa: S104 - replaced
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_FRAME_BYTES_MAX = 16384  # nothing larger is announced, and no answer comes near it


def main(services: list[str]) -> int:
    """Print the status of each service; return 0 if any is SERVING, else 1."""
    address = os.environ.get("EMBEDGRPC_HEALTH_ADDRESS", "")
    if not address:
        command = os.path.join(os.path.dirname(sys.executable), "embedgrpc")  # noqa: PTH118, PTH120 - pathlib takes longer to import than the rest takes to run
        os.execv(command, [command, "health", "--any", *services])  # noqa: S606 - our own program
    try:
        statuses = _check(address, services or [""])
    except (OSError, ValueError) as error:
        sys.stdout.write(f"{address}: {error}\n")
        return 1
    sys.stdout.write("\n".join(statuses) + "\n")
    return 0 if "SERVING" in statuses else 1


def _check(address: str, services: list[str]) -> list[str]:
    """Return the status of each service; NOT_FOUND where the server does not know it."""
    numbers = [2 * index + 1 for index in range(len(services))]  # streams of a client are odd
    answers = dict.fromkeys(numbers, b"")
    waiting = set(numbers)
    deadline = time.monotonic() + _TIMEOUT_S
    with _connect(address) as connection:
        requests = [
            _frame(_HEADERS, _END_HEADERS, number, _head())
            + _frame(_DATA, _END_STREAM, number, _message(service))
            for number, service in zip(numbers, services, strict=True)
        ]
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + b"".join(requests))
        while waiting:
            kind, flags, number, content = _read_frame(connection, deadline)
            if kind == _SETTINGS and not flags & _ACK:
                connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _GOAWAY:
                raise ValueError("the server closes the connection")
            elif kind == _DATA and number in waiting:
                answers[number] += content
            if number in waiting and (
                kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM)
            ):
                waiting.remove(number)
    return [_status(answers[number]) for number in numbers]


def _connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_TIMEOUT_S)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    return socket.create_connection(
        (_WILDCARDS.get(host, host).strip("[]"), int(port)), timeout=_TIMEOUT_S
    )


def _read_frame(connection: socket.socket, deadline: float) -> tuple[int, int, int, bytes]:
    head = _read(connection, 9, deadline)
    size = int.from_bytes(head[:3], "big")
    if size > _FRAME_BYTES_MAX:
        raise ValueError("it does not speak HTTP/2 without TLS")
    number = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
    return head[3], head[4], number, _read(connection, size, deadline)


def _read(connection: socket.socket, size: int, deadline: float) -> bytes:
    content = b""
    while len(content) < size:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(size - len(content))
        if not part:
            raise ValueError("the server closed the connection")
        content += part
    return content


def _frame(kind: int, flags: int, number: int, content: bytes) -> bytes:
    head = len(content).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big")
    return head + content


def _head() -> bytes:
    """Return the header block: names by their index in HPACK's static table, nothing indexed."""
    return (
        b"\x83\x86\x04"  # :method POST, :scheme http
        + _text(b"/grpc.health.v1.Health/Check")  # :path
        + b"\x01" + _text(b"localhost")  # :authority
        + b"\x0f\x10" + _text(b"application/grpc")  # content-type
        + b"\x00" + _text(b"te") + _text(b"trailers")
    )  # fmt: skip


def _text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def _message(service: str) -> bytes:
    """Return HealthCheckRequest{service} with gRPC's prefix: not compressed, the length."""
    name = service.encode()
    if len(name) > 127:  # noqa: PLR2004 - what one byte of a length can say
        raise ValueError("the name of a service has more than 127 bytes")
    content = b"\x0a" + _text(name) if name else b""
    return b"\x00" + len(content).to_bytes(4, "big") + content


def _status(answer: bytes) -> str:
    """Read HealthCheckResponse{status}: the prefix of five bytes, then field 1 as a varint."""
    if not answer:
        return "NOT_FOUND"
    content = answer[5:]
    value = content[1] if content[:1] == b"\x08" else 0
    return _STATUSES[value] if value < len(_STATUSES) else str(value)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
