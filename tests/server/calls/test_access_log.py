"""The line that a call leaves in the log."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest

from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.calls.access_log import AccessLog
from embedgrpc.server.settings.configuration import SettingsError, configure
from embedgrpc.server.telemetry.call_record import CallRecord
from embedgrpc.server.telemetry.logs import BackgroundHandler, HumanFormatter, JsonFormatter
from embedgrpc.tei.v1 import tei_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.server.conftest import Serve
from tests.server.hash_backend import HashBackend
from tests.server.http.http_client import HttpClient
from tests.server.identity.callers import KeyFile
from tests.server.service import EMBED, PATIENCE_S, Service, until
from tests.server.streams import Stream
from tests.server.tei.conftest import Tei

EMBED_METHOD = "/embedgrpc.v1.EmbeddingService/Embed"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
CALLER = "ipv4:127.0.0.1"


class Lines(logging.Handler):
    """Collects what the log of calls writes, as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line."""
        self.lines.append(json.loads(self.format(record)))

    async def next(self) -> dict[str, Any]:
        """Wait for a line, and remove it."""
        await until(lambda: self.lines)
        return self.lines.pop(0)


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is written while the root's level would hide it."""
    handler = Lines()
    logging.getLogger("embedgrpc.access").addHandler(handler)
    yield handler
    logging.getLogger("embedgrpc.access").removeHandler(handler)


Act = Callable[[Service], Awaitable[Any]]


async def _bad_item(service: Service) -> None:
    stream = await Stream.open(service.client)
    await stream.send(("a", "a text"), ("b", ""))
    await stream.results(2)
    await stream.end()


async def _post(service: Service, text: str) -> None:
    body = {"model": "embed", "input": [text]}
    await HttpClient(service).post("/v1/embeddings", body, traceparent=TRACEPARENT[1])


async def _cancel(service: Service) -> None:
    call = asyncio.ensure_future(service.client.embed("a text"))
    await until(lambda: service.admission().ledger.inputs(WorkClass.INTERACTIVE) == 1)
    call.cancel()


async def _leave(service: Service) -> None:
    url = f"http://{service.server.http_address}/v1/embeddings"
    async with aiohttp.ClientSession() as session:
        asking = asyncio.ensure_future(session.post(url, json={"input": "a text"}))
        await until(lambda: service.admission().ledger.inputs(WorkClass.INTERACTIVE) == 1)
        asking.cancel()
        await until(lambda: not len(service.server.open_calls))


QUICK: dict[str, tuple[Act, dict[str, Any]]] = {
    "gRPC, ok": (
        lambda service: service.client.embedding.Embed(
            pb.EmbedRequest(texts=["one", "two"]),
            metadata=(TRACEPARENT, ("x-request-id", "number-7")),
        ),
        {
            "level": "info",
            "door": "grpc",
            "method": EMBED_METHOD,
            "model": "embed",
            "inputs": 2,
            "tokens": 6,
            "status": "OK",
            "trace_id": TRACE,
            "request_id": "number-7",
        },
    ),
    "gRPC, refused": (
        lambda service: service.client.embed(""),
        {
            "level": "warning",
            "door": "grpc",
            "method": EMBED_METHOD,
            "model": "embed",
            "inputs": 1,
            "tokens": 0,
            "status": "INVALID_ARGUMENT",
            "reason": "EMPTY_INPUT",
        },
    ),
    "gRPC, bad item": (
        _bad_item,
        {
            "level": "info",
            "door": "grpc",
            "method": "/embedgrpc.v1.EmbeddingService/StreamEmbed",
            "model": "embed",
            "inputs": 2,
            "failed_inputs": 1,
            "tokens": 7,
            "status": "OK",
        },
    ),
    "tei, ok": (
        lambda service: Tei(service).embed.Embed(tei_pb2.EmbedRequest(inputs="one")),
        {
            "level": "info",
            "door": "tei",
            "method": "/tei.v1.Embed/Embed",
            "model": "embed",
            "inputs": 1,
            "tokens": 3,
            "status": "OK",
        },
    ),
    "tei, refused": (
        lambda service: Tei(service).embed.Embed(tei_pb2.EmbedRequest(inputs="")),
        {
            "level": "warning",
            "door": "tei",
            "method": "/tei.v1.Embed/Embed",
            "model": "embed",
            "inputs": 1,
            "tokens": 0,
            "status": "INVALID_ARGUMENT",
            "reason": "EMPTY_INPUT",
        },
    ),
    "HTTP, ok": (
        lambda service: _post(service, "one"),
        {
            "level": "info",
            "door": "http",
            "method": "POST /v1/embeddings",
            "model": "embed",
            "inputs": 1,
            "tokens": 3,
            "status": "200",
            "trace_id": TRACE,
        },
    ),
    "HTTP, refused": (
        lambda service: _post(service, ""),
        {
            "level": "warning",
            "door": "http",
            "method": "POST /v1/embeddings",
            "model": "embed",
            "inputs": 1,
            "tokens": 0,
            "status": "400",
            "reason": "EMPTY_INPUT",
            "trace_id": TRACE,
        },
    ),
}
SLOW: dict[str, tuple[Act, dict[str, Any]]] = {
    "gRPC, cancelled": (
        _cancel,
        {
            "level": "info",
            "door": "grpc",
            "method": EMBED_METHOD,
            "model": "embed",
            "inputs": 1,
            "tokens": 0,
            "status": "CANCELLED",
        },
    ),
    "gRPC, deadline": (
        lambda service: service.client.embed("a text", timeout=0.05),
        {
            "level": "warning",
            "door": "grpc",
            "method": EMBED_METHOD,
            "model": "embed",
            "inputs": 1,
            "tokens": 0,
            "status": "DEADLINE_EXCEEDED",
        },
    ),
    "HTTP, cancelled": (
        _leave,
        {
            "level": "info",
            "door": "http",
            "method": "POST /v1/embeddings",
            "model": "embed",
            "inputs": 1,
            "tokens": 0,
            "status": "499",
        },
    ),
}


async def test_the_line_of_every_door(serve: Serve, lines: Lines) -> None:
    """Names, counts, status, reason, times and the trace; nothing else."""
    service = await serve(EMBED, tei_model="embed", http_address="127.0.0.1:0", access_log="all")
    for name, (act, expected) in QUICK.items():
        await _check(service, lines, name, act, expected)


async def test_the_line_of_calls_that_end_early(
    serve: Serve, lines: Lines, backend: HashBackend
) -> None:
    """A client that leaves is no warning; a deadline is."""
    service = await serve(EMBED, backend=backend, http_address="127.0.0.1:0", access_log="all")
    backend.hold()
    for name, (act, expected) in SLOW.items():
        await _check(service, lines, name, act, expected)
    backend.release()


async def _act(service: Service, lines: Lines, act: Act) -> dict[str, Any]:
    with contextlib.suppress(grpc.aio.AioRpcError):
        await act(service)
    return await lines.next()


async def _check(
    service: Service, lines: Lines, name: str, act: Act, expected: dict[str, Any]
) -> None:
    line = await _act(service, lines, act)
    for _ in range(20):
        # A client cancels its call at the deadline. On a busy machine the server may read that
        # before its own clock says so, and then a deadline looks like any client that leaves.
        if (line["status"], expected["status"]) != ("CANCELLED", "DEADLINE_EXCEEDED"):
            break
        line = await _act(service, lines, act)
    assert line.pop("total_ms") >= line.pop("queue_ms") >= 0, name
    del line["time"]
    # Which of the two ends a call first is a matter of luck.
    if line.get("reason") == "DEADLINE_EXPIRED":
        del line["reason"]
    fixed = {"logger": "embedgrpc.access", "event": "call", "caller": CALLER}
    assert line == fixed | expected, name


async def test_modes(serve: Serve, lines: Lines) -> None:
    """Nothing, failures alone, a share of the others, or everything; probes only if they fail."""
    service = await serve(EMBED)
    log = service.server._access_log
    assert log.mode == "errors"

    async def statuses(mode: str) -> list[str]:
        log.mode = mode
        await service.client.embed("a text")
        for text in ("", "a text"):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await service.client.embed(text)
        await service.client.status("")
        with contextlib.suppress(grpc.aio.AioRpcError):
            await service.client.status("nobody")
        await until(lambda: not len(service.server.open_calls))
        found = [line["status"] for line in lines.lines]
        lines.lines.clear()
        return found

    assert await statuses("errors") == ["INVALID_ARGUMENT", "NOT_FOUND"]
    assert await statuses("off") == []
    assert await statuses("all") == ["OK", "INVALID_ARGUMENT", "OK", "NOT_FOUND"]
    drawn = iter([0.1, 0.9])
    log._draw = lambda: next(drawn)
    assert await statuses("0.5") == ["OK", "INVALID_ARGUMENT", "NOT_FOUND"]


async def test_denials_always_have_a_line(serve: Serve, lines: Lines, tmp_path: Path) -> None:
    """Even if the log of calls is off. The caller of a known key is named, and the key is not."""
    keys = KeyFile(tmp_path)
    key = keys.add("indexer", 'services = ["rerank"]')
    service = await serve(EMBED, access_log="off", **keys.settings)
    for metadata in ((("x-api-key", "eg_wrong"),), (("x-api-key", key),)):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await service.client.embedding.Embed(
                pb.EmbedRequest(texts=["a text"]), metadata=metadata, timeout=PATIENCE_S
            )
    unknown, denied = await lines.next(), await lines.next()
    assert (unknown["reason"], unknown["label"]) == ("UNAUTHENTICATED", "INVALID_CREDENTIALS")
    assert (unknown["caller"], denied["caller"]) == (CALLER, "indexer")
    assert (denied["reason"], denied["label"]) == ("PERMISSION_DENIED", "SERVICE_DENIED")
    assert key not in str(denied)
    assert "eg_wrong" not in str(unknown)


class _Ended:
    """A call that has ended."""

    request_id = ""
    identity = None

    def __init__(self, reason: str, *, status: str = "RESOURCE_EXHAUSTED") -> None:
        self.record = CallRecord("grpc", EMBED_METHOD)
        self.record.status, self.record.reason = status, reason
        self.caller = self
        self.name = "somebody"


async def test_failures_are_limited_by_reason_and_counted(lines: Lines) -> None:
    """A flood of refusals hides neither itself nor what else goes wrong."""
    now = [0.0]
    log = AccessLog("errors", clock=lambda: now[0])

    def end(reason: str, times: int = 1) -> int:
        before = len(lines.lines)
        for _ in range(times):
            log.observe(_Ended(reason))  # type: ignore[arg-type]
        return len(lines.lines) - before

    assert end("OVERLOADED", 1000) == 20
    assert end("INTERNAL") == 1
    assert end("OVERLOADED", 5) == 0
    now[0] = 1.5
    assert end("OVERLOADED", 10) == 3
    log.close()
    summary = lines.lines[-1]
    assert summary["event"] == "calls left out of the log"
    assert summary["by_reason"] == {"OVERLOADED": 980 + 5 + 7}
    assert summary["calls"] == 992
    log.close()
    assert lines.lines[-1] is summary


async def test_the_number_of_lines_that_are_left_out_comes_by_itself(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another call."""
    monkeypatch.setattr("embedgrpc.server.calls.access_log._SUMMARY_S", 0.01)
    log = AccessLog("errors", clock=lambda: 0.0)
    for _ in range(30):
        log.observe(_Ended("OVERLOADED"))  # type: ignore[arg-type]
    await until(lambda: lines.lines[-1]["event"] != "call")
    assert lines.lines[-1]["calls"] == 10


@pytest.mark.parametrize("key", ["authorization", "cookie", "x-api-key"])
async def test_credentials_that_name_callers_are_hidden(
    serve: Serve, lines: Lines, key: str
) -> None:
    """Where `caller_metadata` is a secret, no line shows it."""
    service = await serve(EMBED, caller_metadata=key, access_log="all")
    await service.client.embedding.Embed(
        pb.EmbedRequest(texts=["a text"]), metadata=((key, "secret"),), timeout=PATIENCE_S
    )
    assert (await lines.next())["caller"] == "hidden"


@pytest.mark.parametrize("value", ["some", "1.5", "-0.1", "nan", ""])
def test_settings_that_are_wrong(value: str) -> None:
    """Neither a mode nor a share."""
    with pytest.raises(SettingsError, match=r"access_log .*off, errors, all, or a number"):
        configure({"access_log": value}, None)


def test_a_share_may_be_a_number(tmp_path: Path) -> None:
    """As TOML has it."""
    config = tmp_path / "embedgrpc.toml"
    config.write_text("access_log = 0.25")
    assert configure({}, config).settings.access_log == "0.25"


async def test_log_lines_of_a_call_have_its_trace(serve: Serve) -> None:
    """In JSON, whatever logs them; lines outside of calls have none."""
    formatter = JsonFormatter()
    seen: list[dict[str, Any]] = []
    service = await serve(EMBED)
    line = logging.makeLogRecord({"msg": "something"})

    def observe(_: Any) -> None:
        seen.append(json.loads(formatter.format(line)))

    service.server.catalog.on_found = observe
    await service.client.embedding.Embed(
        pb.EmbedRequest(texts=["a text"]), metadata=(TRACEPARENT,), timeout=PATIENCE_S
    )
    assert seen[0]["trace_id"] == TRACE
    assert "trace_id" not in json.loads(formatter.format(line))
    assert "trace" not in HumanFormatter().format(line)


WAITING_BYTES_MAX = 200_000


@pytest.fixture
def pipe() -> Iterator[tuple[int, BackgroundHandler]]:
    """A pipe that nobody reads yet, and a log that writes to it."""
    reading, writing = os.pipe()
    handler = BackgroundHandler(writing, bytes_max=WAITING_BYTES_MAX)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    former, root.handlers = root.handlers, [handler]
    yield reading, handler
    root.handlers = former
    os.close(reading)


def _read_lines(reading: int, count: int) -> tuple[list[bytes], int]:
    """Read until so many lines came or were dropped; return those, and how many were dropped."""
    came: list[bytes] = []
    dropped = 0
    with os.fdopen(os.dup(reading), "rb") as lines:
        while len(came) + dropped < count:
            line = lines.readline()
            fields = json.loads(line)
            if fields["event"].startswith("dropped log lines"):
                dropped += fields["lines"]
            else:
                came.append(line)
    return came, dropped


def _read_until(reading: int, what: bytes) -> list[dict[str, Any]]:
    said = b""
    while what not in said or not said.endswith(b"\n"):
        said += os.read(reading, 1 << 20)
    return [json.loads(line) for line in said.splitlines()]


async def test_a_pipe_that_nobody_reads(pipe: tuple[int, BackgroundHandler]) -> None:
    """Calls go on; what does not fit is dropped, and counted as soon as somebody reads."""
    reading, _ = pipe
    log = AccessLog("all")
    for _ in range(5000):
        log.observe(_Ended("OVERLOADED"))  # type: ignore[arg-type]
    # In several parts if the machine is busy, each of which ends with how many were dropped.
    came, dropped = await asyncio.to_thread(_read_lines, reading, 5000)
    assert len(came) + dropped == 5000
    # Those that wait, and those that are being written.
    assert sum(map(len, came)) <= 2 * WAITING_BYTES_MAX


async def test_a_line_is_that_of_other_lines(
    pipe: tuple[int, BackgroundHandler], lines: Lines
) -> None:
    """The short way to write JSON has the same fields, in the same order."""
    reading, _ = pipe
    log = AccessLog("all")
    logging.getLogger("embedgrpc.access").removeHandler(lines)
    log.observe(_Ended("OVERLOADED"))  # type: ignore[arg-type]
    logging.getLogger("other").warning("something else")
    short, other = await asyncio.to_thread(_read_until, reading, b"something else")
    logging.getLogger("embedgrpc.access").addHandler(lines)
    log.observe(_Ended("OVERLOADED"))  # type: ignore[arg-type]
    (long,) = lines.lines
    ignored = {"time", "total_ms"}
    assert list(short) == list(long)
    assert {name: short[name] for name in short.keys() - ignored} == {
        name: long[name] for name in long.keys() - ignored
    }
    assert abs(_time_of(short) - _time_of(other)) < timedelta(minutes=1)


def _time_of(line: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(line["time"])
