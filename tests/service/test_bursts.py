"""A thousand calls at once on one connection, from the clients that others have."""

import asyncio
import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format

from embedgrpc.v1 import embedding_service_pb2 as pb
from embedgrpc.v1 import embedding_service_pb2_grpc
from tests.service.conftest import TOOLS

pytestmark = pytest.mark.long


CALLS = 1000
METHOD = "/embedgrpc.v1.EmbeddingService/Embed"
REQUEST = pb.EmbedRequest(texts=["one of many"])
TIMEOUT_S = 60.0
SOURCES = Path(__file__).parent.parent / "bursts"


def check(statuses: dict[str, int], detailed: int) -> None:
    """Check that every call was answered, or refused by this server and not by gRPC."""
    refused = sum(count for status, count in statuses.items() if status.upper() != "OK")
    assert sum(statuses.values()) == CALLS
    assert detailed == refused, statuses
    assert {status.upper().replace("_", "") for status in statuses} <= {"OK", "RESOURCEEXHAUSTED"}
    assert refused < CALLS / 2, statuses


def test_from_threads(target: str) -> None:
    """A channel of grpcio, whose calls all begin before the first has ended."""
    with grpc.insecure_channel(target) as channel:
        stub = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        calls = [stub.Embed.future(REQUEST, timeout=TIMEOUT_S) for _ in range(CALLS)]
        failures = [call.exception() for call in calls]
    check(*_count(failures))


async def test_from_asyncio(target: str) -> None:
    """A channel of grpc.aio."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
        outcomes = await asyncio.gather(
            *(stub.Embed(REQUEST, timeout=TIMEOUT_S) for _ in range(CALLS)), return_exceptions=True
        )
    check(*_count([one if isinstance(one, BaseException) else None for one in outcomes]))


def test_from_go(target: str) -> None:
    """A connection of grpc-go, which ghz calls on: it learns the contract by reflection.

    It tells no details of refusals: so there must be none.
    """
    program = TOOLS / "ghz"
    if not program.exists():
        _do_without("go")
    done = subprocess.run(
        [
            *(str(program), "--insecure", "--call", METHOD.removeprefix("/"), "--format", "json"),
            *("--total", str(CALLS), "--concurrency", str(CALLS), "--connections", "1"),
            *("--timeout", f"{TIMEOUT_S:g}s", "--data", json_format.MessageToJson(REQUEST)),
            target,
        ],
        capture_output=True,
        env=_environment(),
        timeout=2 * TIMEOUT_S,
        check=True,
    )
    assert json.loads(done.stdout)["statusCodeDistribution"] == {"OK": CALLS}


def test_from_javascript(target: str) -> None:
    """A client of grpc-js, on Node."""
    modules = TOOLS.parent / "burst-js" / "node_modules"
    if not modules.is_dir():
        _do_without("npm")
    check(*_run(["node", str(SOURCES / "js" / "burst.js")], target, NODE_PATH=str(modules)))


def _do_without(tool: str) -> None:
    """Skip where the checks did not install a client; in CI they do wherever they can."""
    if os.environ.get("CI") and shutil.which(tool):
        pytest.fail(f"{tool} is there, and .ci/run did not install the client with it")
    pytest.skip(f".ci/run installs the client where there is {tool}")


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }


def _run(command: list[str], target: str, **variables: str) -> tuple[dict[str, int], int]:
    done = subprocess.run(
        [*command, target, METHOD, str(CALLS)],
        input=REQUEST.SerializeToString(),
        capture_output=True,
        env=_environment() | variables,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    outcome = json.loads(done.stdout)
    return outcome["statuses"], outcome["detailed"]


def _count(failures: list[BaseException | None]) -> tuple[dict[str, int], int]:
    """Count the statuses, and those that came with details."""
    statuses: Counter[str] = Counter()
    detailed = 0
    for failure in failures:
        if failure is None:
            statuses["OK"] += 1
            continue
        assert isinstance(failure, grpc.RpcError)
        statuses[failure.code().name] += 1
        metadata: Any = failure.trailing_metadata()
        detailed += any(key == "grpc-status-details-bin" for key, _ in metadata or ())
    return dict(statuses), detailed
