"""The command line of the compose file, run by a real tritonserver."""

import json
import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from tritonclient.grpc import service_pb2 as messages

from tests.triton.environment import Environment
from tests.triton.made_up import write_doubling
from tests.triton.server import TritonServer

pytestmark = pytest.mark.triton

COMPOSE = Path(__file__).parent.parent.parent / "docker/compose.triton.yaml"
COLLECTOR = "collector:4318"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PATIENCE_S = 60
# Spans are sent once: if those of a request are lost, the test traces another one.
ATTEMPTS = 4


@contextmanager
def collecting() -> Iterator[tuple[str, "queue.SimpleQueue[Any]"]]:
    """Run a collector of spans over HTTP; yield its address and a queue of the spans."""
    taken: queue.SimpleQueue[Any] = queue.SimpleQueue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.put((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its base's name
            del format, args  # it would go to stderr

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", taken
        finally:
            server.shutdown()
            thread.join()


def _command() -> list[str]:
    command: list[str] = yaml.safe_load(COMPOSE.read_text())["services"]["triton-cpu"]["command"]
    return command


def test_every_flag_is_known(triton_environment: Environment) -> None:
    """The server's help lists each flag."""
    program, *flags = _command()
    assert program == triton_environment.program.name
    done = subprocess.run(
        [triton_environment.program, "--help"],
        env=dict(triton_environment.variables()),
        check=False,
        capture_output=True,
        text=True,
    )
    known = set(re.findall(r"--[a-z-]+", done.stdout + done.stderr))
    assert {flag.partition("=")[0] for flag in flags} <= known


def test_traces_go_on_in_the_server(triton_environment: Environment, tmp_path: Path) -> None:
    """The flags are accepted; a request is traced only if it carries a trace, under its id."""
    write_doubling(tmp_path, "first")
    request = messages.ModelInferRequest(
        model_name="first",
        inputs=[
            messages.ModelInferRequest.InferInputTensor(
                name="value", datatype="INT64", shape=(1, 1)
            )
        ],
        raw_input_contents=[np.int64(3).tobytes()],
    )
    with collecting() as (collector, taken):
        flags = [
            flag.replace(COLLECTOR, collector)
            for flag in _command()
            if flag.startswith("--trace-config")
        ]
        assert any(collector in flag for flag in flags)
        # The default delay of spans is 5 s.
        flags.append("--trace-config=opentelemetry,bsp_schedule_delay=100")
        with (
            TritonServer(triton_environment, tmp_path, flags=flags) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            infer: grpc.UnaryUnaryMultiCallable[Any, bytes] = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=messages.ModelInferRequest.SerializeToString,
            )
            infer(request, timeout=PATIENCE_S)
            parent = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
            for _ in range(ATTEMPTS):
                infer(request, timeout=PATIENCE_S, metadata=(("traceparent", parent),))
                with suppress(queue.Empty):
                    path, spans = taken.get(timeout=PATIENCE_S / ATTEMPTS)
                    break
            else:
                pytest.fail(f"no spans came:\n{server.log}")
    assert path == "/v1/traces"
    found = [
        span
        for resource in spans["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert {span["traceId"] for span in found} == {TRACE_ID}
    assert {"InferRequest", "first"} <= {span["name"] for span in found}
