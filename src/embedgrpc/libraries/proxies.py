"""Keeps calls to this machine away from the proxy that the environment names."""

import os

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_HERE = ("localhost", "127.0.0.1", "::1", "[::1]")


def spare_loopback() -> None:
    """Add this machine to `no_proxy`, which every library goes by, where a proxy is set.

    A proxy is set for whole hosts and clusters; it cannot reach the collector beside a server.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    for name in ("no_proxy", "NO_PROXY"):
        # Libraries read the one or the other, and most the first of the two that is there.
        given = os.environ.get(name) or os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        named = [one.strip() for one in given.split(",") if one.strip()]
        if "*" not in named:
            os.environ[name] = ",".join([*named, *(one for one in _HERE if one not in named)])
