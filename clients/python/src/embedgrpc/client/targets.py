"""Checks the address of a server before gRPC reads it.

gRPC takes almost anything for the name of a host, and answers with an error of DNS; without a port
it uses 443.
"""

import re
from typing import Final

_URL: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.IGNORECASE)
_WEB_SCHEMES: Final = ("http", "https", "grpc", "grpcs")
_RESOLVERS: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")
_HOST_PORT: Final = re.compile(r"(?:\[[^\[\]]+\]|[^\[\]:/\s]+):(?P<port>[0-9]+)")
_PORT_MAX: Final = 65535


def valid_target(target: str) -> str:
    """Return the address of a server.

    Args:
        target: HOST:PORT, unix:PATH, or another form that gRPC documents, such as dns:///HOST:PORT.

    Raises:
        TypeError: It is not a str.
        ValueError: It is empty, a URL, has no port, or is of an unknown form.
    """
    if not isinstance(target, str):
        raise TypeError(f"target is not a str but of type {type(target).__name__}")
    if not target:
        raise ValueError("target is empty; give HOST:PORT or unix:PATH")
    if target.startswith(_RESOLVERS):
        return target
    url = _URL.fullmatch(target)
    if url is not None and url["scheme"].lower() in _WEB_SCHEMES:
        tls = " and tls=True" if url["scheme"].lower() in ("https", "grpcs") else ""
        address = url["rest"].rstrip("/") or "HOST:PORT"
        raise ValueError(f"target {target!r} is a URL; give {address!r}{tls}")
    found = _HOST_PORT.fullmatch(target)
    if found is None:
        if target.count(":") > 1:
            hint = "an IPv6 address needs brackets, as in [::1]:50051"
        elif ":" not in target and "/" not in target:
            hint = f"it has no port; give {target + ':50051'!r}, for instance"
        else:
            hint = "give HOST:PORT or unix:PATH"
        raise ValueError(f"target {target!r} is no address: {hint}")
    if not 0 < int(found["port"]) <= _PORT_MAX:
        raise ValueError(f"target {target!r} has no valid port; ports are from 1 to {_PORT_MAX}")
    return target
