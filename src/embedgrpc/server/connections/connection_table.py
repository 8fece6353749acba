"""The connections of this process, read from the kernel: gRPC does not list them.

Linux lists the descriptors of a process in `/proc/self/fd`. The connections are the connected TCP
sockets of the server's port. gRPC may close one at any time, and another file may get its number,
so a descriptor is always duplicated first and then checked.
"""

import ipaddress
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

_DESCRIPTORS = "/proc/self/fd"
_SOCKET = "socket:["
# struct tcp_info of Linux: milliseconds since data was last sent and received.
_TCP_INFO_BYTES = 64
_LAST_DATA_SENT_AT, _LAST_DATA_RECEIVED_AT = 44, 52
# An IPv6 client has a whole network of addresses, with a prefix of this length.
_IPV6_PREFIX = 64
_KNOWN_ADDRESSES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection.

    Attributes:
        inode: The inode of its socket; unique while it is open.
        descriptor: Its number in this process.
        peer: Its other end, as gRPC's contexts name it.
        address: The same without the port; see `address_of`.
        seen_at: When it was first seen, on the monotonic clock.
        active_at: When bytes were last sent or received before that.
    """

    inode: int
    descriptor: int
    peer: str
    address: str
    seen_at: float
    active_at: float


@lru_cache(_KNOWN_ADDRESSES_MAX)
def address_of(peer: str) -> str:
    """Return what the connections of a peer are counted by: its address, or its IPv6 network.

    Args:
        peer: As gRPC's contexts name it, such as `ipv4:10.0.0.7:40112`.
    """
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        host = rest.removeprefix("%5B").removeprefix("[")
        for end in ("%5D", "]", "%25", "%"):
            host = host.partition(end)[0]
        try:
            return str(ipaddress.IPv6Network((host, _IPV6_PREFIX), strict=False))
        except ValueError:
            return host
    return kind


def can_be_listed() -> bool:
    """Return whether this system lists the connections of a process."""
    return Path(_DESCRIPTORS).is_dir() and hasattr(socket, "TCP_INFO")


class ConnectionTable:
    """The connections to one port of this process. Several threads may use it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        # By inode; None for sockets that are no connections of this port.
        self._known: dict[int, Connection | None] = {}
        self._closed: set[int] = set()
        self._others = 0

    def estimate(self) -> int:
        """Return about how many connections there are, with one system call.

        It is the number of open files of the process, less those that were no connections at the
        last `read`.
        """
        # Since Linux 6.2, the size of the folder is their number; before, it was 0.
        descriptors = os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))  # noqa: PTH116, PTH208 - often
        return descriptors - self._others

    def read(self) -> list[Connection]:
        """Return the open connections, without those that `close` has closed."""
        with self._lock:
            known: dict[int, Connection | None] = {}
            names = os.listdir(_DESCRIPTORS)  # noqa: PTH208 - thousands of them
            for name in names:
                inode = _socket_inode(name)
                if not inode or inode in known:
                    continue
                if inode in self._known:
                    known[inode] = self._known[inode]
                else:
                    known[inode] = self._inspect(int(name), inode)
            self._known = known
            self._closed &= known.keys()
            connections = [one for one in known.values() if one is not None]
            # One of the names is that of the folder itself, open for reading.
            self._others = len(names) - 1 - len(connections)
            return [one for one in connections if one.inode not in self._closed]

    def close(self, connection: Connection) -> bool:
        """Close a connection; to gRPC, the client has left.

        Returns:
            Whether it was still open.
        """
        with self._lock:
            self._closed.add(connection.inode)
            duplicate = _duplicate(connection.descriptor, connection.inode)
            if duplicate is None:
                return False
            with duplicate:
                try:
                    duplicate.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return False
            return True

    def _inspect(self, descriptor: int, inode: int) -> Connection | None:
        """Return the connection of a socket, if it is one of this port."""
        duplicate = _duplicate(descriptor, inode)
        if duplicate is None:
            return None
        with duplicate:
            if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            if duplicate.type != socket.SOCK_STREAM:
                return None
            try:
                if duplicate.getsockname()[1] != self._port:
                    return None
                peer = _peer_of(duplicate.getpeername())
                info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            except OSError:
                # It is the listening socket, or its other end has left.
                return None
        quiet_ms = min(
            struct.unpack_from("=I", info, offset)[0]
            for offset in (_LAST_DATA_SENT_AT, _LAST_DATA_RECEIVED_AT)
        )
        now = time.monotonic()
        return Connection(
            inode, descriptor, peer, address_of(peer), seen_at=now, active_at=now - quiet_ms / 1000
        )


def _socket_inode(name: str) -> int:
    """Return the inode of a descriptor's socket; 0 if it is no socket."""
    try:
        target = os.readlink(f"{_DESCRIPTORS}/{name}")  # noqa: PTH115 - thousands of them
    except OSError:
        return 0
    return int(target[len(_SOCKET) : -1]) if target.startswith(_SOCKET) else 0


def _duplicate(descriptor: int, inode: int) -> socket.socket | None:
    """Duplicate a descriptor, if it still has that inode."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    if os.fstat(duplicate).st_ino != inode:
        os.close(duplicate)
        return None
    return socket.socket(fileno=duplicate)


def _peer_of(address: tuple[str, int]) -> str:
    """Return the name that gRPC's contexts have for a socket's address."""
    host, port = address[:2]
    mapped = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(mapped, ipaddress.IPv6Address):
        if mapped.ipv4_mapped is None:
            return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}"
        host = str(mapped.ipv4_mapped)
    return f"ipv4:{host}:{port}"
