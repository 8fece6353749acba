"""Keep calls to this machine away from the proxy that the environment names."""

import ipaddress

_SCHEMES = ("dns:///", "dns:", "ipv4:", "ipv6:")


def proxy_options(target: str) -> tuple[tuple[str, int], ...]:
    """Return the channel options for a target: no proxy where it is on this machine.

    `http_proxy` applies to a whole host or container, and a proxy elsewhere cannot reach its
    loopback addresses. For other targets gRPC follows `no_proxy`.
    """
    return (("grpc.enable_http_proxy", 0),) if is_here(target) else ()


def is_here(target: str) -> bool:
    """Return whether a target is on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in _SCHEMES:
        target = target.removeprefix(scheme)
    host = target.rpartition(":")[0].strip("[]").lower() or target.lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
