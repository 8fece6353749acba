import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as messages

from tests.triton.environment import Environment
from tests.triton.made_up import write_doubling
from tests.triton.server import ServerEndedError, TritonServer

pytestmark = pytest.mark.triton

# Longer than any test: such a sleep ends only with its process.
_FOR_GOOD_MS = 600_000


@pytest.fixture
def server(triton_environment: Environment, tmp_path: Path) -> Iterator[TritonServer]:
    """A server with one of two models loaded."""
    for name in ("first", "second"):
        write_doubling(tmp_path, name)
    with TritonServer(triton_environment, tmp_path, models=("first",)) as server:
        yield server


def _double(server: TritonServer, value: int) -> int:
    request = messages.ModelInferRequest(
        model_name="first",
        inputs=[
            messages.ModelInferRequest.InferInputTensor(
                name="value", datatype="INT64", shape=(1, 1)
            )
        ],
        raw_input_contents=[np.int64(value).tobytes()],
    )
    response = server.call("ModelInfer", request, messages.ModelInferResponse)
    return int(np.frombuffer(response.raw_output_contents[0], "<i8")[0])


def _listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as caller:
        return caller.connect_ex((host, int(port))) == 0


def test_models_are_loaded_and_unloaded(server: TritonServer) -> None:
    """Named models are loaded at the start, and others on request."""
    assert _double(server, 21) == 42
    assert not server.is_ready("second")
    server.load("second")
    assert server.is_ready("second")
    server.unload("first")
    assert not server.is_ready("first")
    with pytest.raises(grpc.RpcError) as caught:
        _double(server, 1)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_killed_server_restarts_on_its_port(server: TritonServer) -> None:
    """A kill ends the call in progress and closes the port; a restart opens it again."""
    address = server.address
    with ThreadPoolExecutor(1) as pool:
        lost: Future[int] = pool.submit(_double, server, -_FOR_GOOD_MS)
        server.wait_for_log("asleep")
        assert server.memory_regions
        server.kill()
        error = lost.exception()
    assert isinstance(error, grpc.RpcError)
    assert not _listening(address)
    assert server.memory_regions == []
    server.restart()
    assert server.address == address
    assert _double(server, 4) == 8


def test_a_paused_server_answers_when_it_is_resumed(server: TritonServer) -> None:
    """A paused server accepts connections, and a call waits until it is resumed."""
    server.pause()
    assert _listening(server.address)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_double, server, 3)
        server.resume()
        assert waiting.result(60) == 6


def test_a_server_leaves_nothing_behind(triton_environment: Environment, tmp_path: Path) -> None:
    """Port, shared memory and folder are freed, even while a stub never ends."""
    write_doubling(tmp_path, "first")
    with (
        ThreadPoolExecutor(1) as pool,
        TritonServer(triton_environment, tmp_path, models=("first",)) as server,
    ):
        lost = pool.submit(_double, server, -_FOR_GOOD_MS)
        server.wait_for_log("asleep")
    assert isinstance(lost.exception(60), grpc.RpcError)
    assert not _listening(server.address)
    assert server.memory_regions == []
    assert server.log == ""
    assert not server.folder.exists()


def test_a_server_that_cannot_start_reports_its_log(
    triton_environment: Environment, tmp_path: Path
) -> None:
    """The error contains the log, which names the model."""
    with (
        pytest.raises(ServerEndedError, match="absent"),
        TritonServer(triton_environment, tmp_path, models=("absent",)),
    ):
        pytest.fail("it has started")
