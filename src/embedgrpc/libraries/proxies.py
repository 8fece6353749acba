"""Excludes this machine from the proxy that the environment names."""

import os

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_HERE = ("localhost", "127.0.0.1", "::1", "[::1]")


def exclude_loopback() -> None:
    """Add this machine to `no_proxy`, which every library follows, if a proxy is set.

    A proxy is set for whole hosts and clusters; it cannot reach a collector on this machine.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    for name in ("no_proxy", "NO_PROXY"):
        # Libraries read either variable, and most use the first that is set.
        given = os.environ.get(name) or os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        named = [one.strip() for one in given.split(",") if one.strip()]
        if "*" not in named:
            os.environ[name] = ",".join([*named, *(one for one in _HERE if one not in named)])
