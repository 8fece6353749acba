"""The server reaches this machine without the proxy that the environment names."""

import os
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from embedgrpc.libraries.proxies import exclude_loopback
from tests.server.server_process import started

VARIABLES = [
    name
    for lower in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy")
    for name in (lower, lower.upper())
]


@pytest.mark.parametrize(
    ("given", "lower", "upper"),
    [
        ({}, None, None),
        ({"no_proxy": "a"}, None, None),
        ({"http_proxy": "p"}, "HERE", "HERE"),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "a, b"}, "a,b,HERE", "a,b,HERE"),
        ({"grpc_proxy": "p", "no_proxy": "a", "NO_PROXY": "b"}, "a,HERE", "b,HERE"),
        ({"http_proxy": "p", "no_proxy": "::1,x"}, "::1,x,localhost,127.0.0.1,[::1]", None),
        ({"http_proxy": "p", "no_proxy": "*", "NO_PROXY": "*"}, "*", "*"),
    ],
)
def test_this_machine_is_excluded(
    given: Mapping[str, str], lower: str | None, upper: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine is added to the user's exclusions where there is a proxy."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    exclude_loopback()
    here = "localhost,127.0.0.1,::1,[::1]"
    wanted: dict[str, str | None] = {"no_proxy": lower, "NO_PROXY": upper}
    for name, expected in wanted.items():
        if expected is not None:
            assert os.environ[name] == expected.replace("HERE", here)
    if not given.keys() & set(VARIABLES[:8]):
        for name in wanted:
            assert os.environ.get(name) == given.get(name)


class _Collector(BaseHTTPRequestHandler):
    paths: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.paths.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


async def test_a_collector_on_this_machine_is_reached(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics go to the collector on this machine, and not to the proxy."""
    paths: list[str] = []
    handler = type("Collector", (_Collector,), {"paths": paths})
    with HTTPServer(("127.0.0.1", 0), handler) as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}"
        )
        try:
            async with started(cache_dir=cache_dir, telemetry=True) as server:
                await server.until("serving")
                server.signal(15)
                assert await server.ended() == 0
        finally:
            collector.shutdown()
            thread.join()
    # The request line has only the path; for a proxy it would have the whole URL.
    assert "/v1/metrics" in paths
