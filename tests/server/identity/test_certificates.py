"""Callers by the SPIFFE ids of their certificates."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from embedgrpc.server.caller import Caller, Proof
from embedgrpc.server.caller import Service as Allowed
from embedgrpc.server.calls.open_call import OpenCall
from embedgrpc.server.identity.certificate_callers import (
    find_certificate_caller,
    parse_certificate_callers,
)
from embedgrpc.v1 import embedding_service_pb2, embedding_service_pb2_grpc
from tests.authority import HOSTS, Authority, Pair
from tests.server.identity.callers import KeyFile, answer_of
from tests.server.service import PATIENCE_S, Service, until
from tests.server.tls_caller import TlsCaller

CALLERS = """
[[callers]]
uri = "spiffe://example.org/ns/search/sa/*"
name = "search"
services = ["embed", "models"]

[[callers]]
uri = "spiffe://example.org/ns/**"
"""
SEARCH = "spiffe://example.org/ns/search/sa/indexer"
OTHER = "spiffe://example.org/ns/other/deep/path"


async def test_a_certificate_names_its_caller(
    serve: Callable[..., Awaitable[Service]], tmp_path: Path, keys: KeyFile
) -> None:
    """On both ports; a key counts before it, and a bad key is not forgiven."""
    authority = Authority(tmp_path)
    path = tmp_path / "callers.toml"
    path.write_text(CALLERS)
    key = keys.add("with-a-key")
    service = await serve(
        http_address="127.0.0.1:0",
        tls_client_ca_file=str(authority.file),
        certificate_callers_file=str(path),
        **authority.issue("server", *HOSTS).settings,
        **keys.settings,
    )
    seen: list[Caller] = []

    def observe(call: OpenCall) -> None:
        seen.append(call.caller)

    service.server.open_calls.observers.append(observe)

    async def answers(pair: Pair, *metadata: tuple[str, str]) -> list[tuple[str, str]]:
        caller = TlsCaller(service.server, authority.pem, pair)
        http = await caller.status("/v1/models", dict(metadata))
        return [await _embed(caller, *metadata), (str(http), "")]

    search = authority.issue("search", SEARCH)
    assert await answers(search) == [("OK", ""), ("200", "")]
    rights = frozenset({Allowed.EMBED, Allowed.MODELS})
    await until(lambda: len(seen) == 2)
    assert seen == [Caller("search", Proof.CERTIFICATE, services=rights)] * 2
    seen.clear()
    other = authority.issue("other", OTHER)
    assert await answers(other) == [("OK", ""), ("200", "")]
    await until(lambda: len(seen) == 2)
    assert seen == [Caller(OTHER, Proof.CERTIFICATE)] * 2
    seen.clear()
    assert await answers(search, ("x-api-key", key)) == [("OK", ""), ("200", "")]
    await until(lambda: len(seen) == 2)
    assert [one.name for one in seen] == ["with-a-key"] * 2
    wrong = [("UNAUTHENTICATED", "INVALID_CREDENTIALS"), ("401", "")]
    assert await answers(search, ("x-api-key", "eg_wrong")) == wrong
    stranger = authority.issue("stranger", "spiffe://elsewhere.org/ns/search/sa/indexer")
    assert await answers(stranger) == wrong
    missing = [("UNAUTHENTICATED", "NO_CREDENTIALS"), ("401", "")]
    for pair in (
        authority.issue("two", SEARCH, OTHER),
        authority.issue("none", "client.example"),
        authority.issue("plain"),
    ):
        assert await answers(pair) == missing

    path.write_text("callers = []")
    authenticator = service.server.open_calls.authenticator
    assert authenticator is not None
    authenticator.reload()
    assert await answers(search) == wrong


async def _embed(caller: TlsCaller, *metadata: tuple[str, str]) -> tuple[str, str]:
    async with caller.channel() as channel:
        stub: Any = embedding_service_pb2_grpc.EmbeddingServiceStub
        try:
            await stub(channel).Embed(
                embedding_service_pb2.EmbedRequest(texts=["a text"]),
                metadata=metadata,
                timeout=PATIENCE_S,
            )
        except grpc.aio.AioRpcError as error:
            answer = answer_of(error)
            return answer.status, answer.label
    return "OK", ""


@pytest.mark.parametrize(
    ("pattern", "uri", "fits"),
    [
        ("spiffe://example.org/a", "spiffe://example.org/a", True),
        ("spiffe://example.org/a", "spiffe://example.org/a/b", False),
        ("spiffe://example.org/a", "spiffe://exampleXorg/a", False),
        ("spiffe://example.org/*", "spiffe://example.org/a/b", False),
        ("spiffe://example.org/*/b", "spiffe://example.org/a/b", True),
        ("spiffe://example.org/a-*", "spiffe://example.org/a-1", True),
        ("spiffe://example.org/**", "spiffe://example.org/a/b", True),
        ("spiffe://example.org/**", "spiffe://example.org/", False),
        ("spiffe://example.org/**", "spiffe://example.org.evil/a", False),
    ],
)
def test_patterns_of_ids(pattern: str, uri: str, fits: bool) -> None:  # noqa: FBT001 - of the table
    """A star stands for a part of a segment, two for any segments; the trust domain is fixed."""
    rows = parse_certificate_callers(f'[[callers]]\nuri = "{pattern}"'.encode())
    assert (find_certificate_caller(rows, uri) is not None) == fits


@pytest.mark.parametrize(
    "uri", ["https://example.org/a", "spiffe://*/a", "spiffe://example.org", "spiffe://A/b", "*"]
)
def test_what_is_no_pattern_is_refused(uri: str) -> None:
    """Above all what would let other trust domains in."""
    with pytest.raises(ValueError, match=r"callers\[0\]\.uri: must be a SPIFFE id"):
        parse_certificate_callers(f'[[callers]]\nuri = "{uri}"'.encode())
