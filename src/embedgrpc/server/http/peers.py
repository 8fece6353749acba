"""Names the other ends of connections as gRPC does."""

import asyncio
from typing import Any


def peer_of(transport: asyncio.BaseTransport | None) -> str:
    """Return the other end of a connection as gRPC writes it, such as "ipv4:127.0.0.1:5000"."""
    return name_of(transport.get_extra_info("peername") if transport else None)


def name_of(place: Any) -> str:
    """Return a socket's address as gRPC writes it; "unix:" for one that has none."""
    if not isinstance(place, tuple):
        return "unix:"
    host, port = place[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
