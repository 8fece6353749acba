"""The networks of callers that are known by their addresses."""

import ipaddress
from functools import lru_cache

# An IPv6 client has a whole network of addresses, with a prefix of this length.
_IPV6_PREFIX = 64
_IPV6 = "ipv6:["
_KNOWN_CALLERS_MAX = 16_384


@lru_cache(_KNOWN_CALLERS_MAX)
def network_of(caller: str) -> str:
    """Return what the limits of a caller hold for: of an IPv6 address, its network.

    Args:
        caller: Such as ipv6:[2001:db8::1]. Others are returned as they are.
    """
    if not caller.startswith(_IPV6):
        return caller
    host = caller.removeprefix(_IPV6).removesuffix("]").partition("%")[0]
    try:
        return f"ipv6:{ipaddress.IPv6Network((host, _IPV6_PREFIX), strict=False)}"
    except ValueError:
        return caller
