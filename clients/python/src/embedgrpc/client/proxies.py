"""Which servers are called directly, whatever proxy the environment names."""

import ipaddress

_SCHEMES = ("dns:///", "dns:", "ipv4:", "ipv6:")


def proxy_options(target: str) -> tuple[tuple[str, int], ...]:
    """Return the channel's options that keep calls to this machine away from a proxy.

    `http_proxy` is set for whole hosts and containers, and a proxy elsewhere cannot reach them.
    For all other targets gRPC goes by `no_proxy`.
    """
    return (("grpc.enable_http_proxy", 0),) if _is_here(target) else ()


def _is_here(target: str) -> bool:
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
