"""The server whose doors are fuzzed: on a socket, in a thread of this process."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from embedgrpc.engine.errors import EngineError, Reason
from embedgrpc.server.rpc.errors import status_code
from embedgrpc.server.settings.model_settings import ModelSettings
from embedgrpc.server.telemetry.logs import is_no_fault_of_a_client
from embedgrpc.v1 import common_pb2
from embedgrpc.v1 import embedding_service_pb2 as embedding
from embedgrpc.v1 import embedding_service_pb2_grpc as embedding_grpc
from tests.server.service import CROSS, EMBED, PATIENCE_S, serving, settings_for

_START_S_MAX = 120.0


class Incidents(logging.Handler):
    """Keeps what the server logs as an error: no input may cause one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of a record; `logging` calls this."""
        if not _is_of_a_closed_loop(record):
            text = record.getMessage()[:500]
            self.messages.append(f"{record.name}: {text} {record.exc_info or ''}")

    def check(self) -> None:
        """Raise AssertionError with what was logged since the last check, if anything."""
        messages, self.messages = self.messages, []
        assert not messages, messages


def _is_of_a_closed_loop(record: logging.LogRecord) -> bool:
    """Whether gRPC had an event for the loop of an earlier test: all loops share one queue of it.

    The server's own loop is open as long as the server is fuzzed.
    """
    error = record.exc_info[1] if record.exc_info else None
    return "PollerCompletionQueue" in record.getMessage() and (
        isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    )


class FuzzedServer:
    """A server that runs until its block ends.

    Attributes:
        address: Where it listens.
        channel: A connection to it.
        incidents: What it logged as errors.
    """

    def __init__(self, address: str, channel: grpc.Channel, incidents: Incidents) -> None:
        self.address = address
        self.channel = channel
        self.incidents = incidents
        self._stub = embedding_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]

    def check(self) -> None:
        """Make a plain call, which must be answered, and see that nothing was logged."""
        request = embedding.EmbedRequest(model="embed", texts=["a plain call"])
        response = self._stub.Embed(request, timeout=PATIENCE_S)
        assert len(response.embeddings) == 1
        self.incidents.check()


def check_details(error: Any) -> None:
    """Check that a failed call has exactly one ErrorInfo, whose reason has the call's status."""
    trailing = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    number, _ = error.code().value
    assert status.code == number
    found = [one for one in status.details if one.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(found) == 1, f"{len(found)} ErrorInfo"
    info = error_details_pb2.ErrorInfo()
    found[0].Unpack(info)
    assert info.domain == "embedgrpc"
    assert f"ERROR_REASON_{info.reason}" in common_pb2.ErrorReason.DESCRIPTOR.values_by_name
    expected = EngineError("message")
    expected.reason = Reason(info.reason)
    assert status_code(expected) is error.code(), info.reason


@contextmanager
def fuzzed_server(scratch: Path, *models: ModelSettings) -> Iterator[FuzzedServer]:
    """Serve models until the block ends; by default an embedding model and a cross-encoder."""
    ready, ended = threading.Event(), asyncio.Event()
    started: list[tuple[str, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        settings = settings_for(
            *(models or (EMBED, CROSS)), cache_dir=scratch, max_inputs=64, kserve=True
        )
        async with serving(settings) as service:
            started.append((service.address, asyncio.get_running_loop()))
            ready.set()
            await ended.wait()

    incidents = Incidents()
    logging.getLogger().addHandler(incidents)
    # As the server's own log does it.
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_no_fault_of_a_client)
    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="server")
    thread.start()
    try:
        assert ready.wait(_START_S_MAX), "the server does not start"
        address, _ = started[0]
        with grpc.insecure_channel(address) as channel:
            yield FuzzedServer(address, channel, incidents)
    finally:
        if started:
            started[0][1].call_soon_threadsafe(ended.set)
        thread.join(_START_S_MAX)
        logging.getLogger().removeHandler(incidents)
        logging.getLogger("grpc._cython.cygrpc").removeFilter(is_no_fault_of_a_client)
