"""Reads the sources of models that run on a Triton server."""

import re
from dataclasses import dataclass

from embedgrpc.models.errors import ModelError

_SCHEME = "triton:"
_SECURE_SCHEME = "triton+tls:"
_FORM = "triton:HOST:PORT[,HOST:PORT...]/MODEL[:VERSION], or triton+tls: for TLS"
_ENDPOINT = re.compile(r"(?P<host>[\w.-]+|\[[0-9A-Fa-f:.%]+\]):(?P<port>\d{1,5})", re.ASCII)
_MODEL = re.compile(r"(?P<model>[\w.-]+)(?::(?P<version>[1-9]\d{0,17}))?", re.ASCII)
_PORT_MAX = 65_535
_ENDPOINTS_MAX = 64


@dataclass(frozen=True, slots=True)
class TritonSource:
    """A model on one or several Triton servers.

    Attributes:
        endpoints: HOST:PORT of the servers' gRPC ports, without duplicates; an IPv6 address is in
            brackets.
        version: The version on the server; empty lets the server choose.
        secure: Whether the connections use TLS.
    """

    endpoints: tuple[str, ...]
    model: str
    version: str
    secure: bool


def is_triton_source(source: str) -> bool:
    """Whether a source names a model on a Triton server."""
    return source.startswith((_SCHEME, _SECURE_SCHEME))


def parse_triton_source(source: str) -> TritonSource:
    """Parse a source such as `triton:10.0.0.1:8001,10.0.0.2:8001/minilm:3`.

    Raises:
        ModelError: It has another form, or names an endpoint twice.
    """
    secure = source.startswith(_SECURE_SCHEME)
    place = source.removeprefix(_SECURE_SCHEME if secure else _SCHEME)
    addresses, slash, name = place.partition("/")
    named = _MODEL.fullmatch(name)
    if not is_triton_source(source) or not slash or named is None:
        raise ModelError(f"model source {source!r}: the form is {_FORM}")
    endpoints = tuple(addresses.split(","))
    if len(endpoints) > _ENDPOINTS_MAX:
        raise ModelError(
            f"model source of {len(endpoints)} endpoints: the limit is {_ENDPOINTS_MAX}"
        )
    for endpoint in endpoints:
        found = _ENDPOINT.fullmatch(endpoint)
        if found is None or not 1 <= int(found["port"]) <= _PORT_MAX:
            raise ModelError(
                f"model source {source!r}: {endpoint!r} is not HOST:PORT with a port from 1 to"
                f" {_PORT_MAX}; an IPv6 address must be in brackets"
            )
    if len(set(endpoints)) < len(endpoints):
        raise ModelError(f"model source {source!r} names an endpoint twice")
    return TritonSource(endpoints, named["model"], named["version"] or "", secure)


def join_endpoints(parts: list[str]) -> list[str]:
    """Return the sources of a list that was split at every comma, also between endpoints.

    Args:
        parts: Sources, with or without `ID=`, or parts of Triton sources.
    """
    joined: list[str] = []
    for part in parts:
        if joined and is_triton_source(joined[-1].rpartition("=")[2]) and "/" not in joined[-1]:
            joined[-1] += f",{part}"
        else:
            joined.append(part)
    return joined
