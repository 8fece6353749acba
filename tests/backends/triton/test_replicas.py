import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from embedgrpc.backends.base import (
    BackendError,
    BackendOverloadedError,
    BackendUnreachableError,
    RunContext,
)
from embedgrpc.backends.triton.backend import TritonBackend
from embedgrpc.backends.triton.circuit import FAILURES_MAX
from tests.backends.triton.conftest import Connect
from tests.backends.triton.kserve_server import PATIENCE_S, Fault, KServeServer
from tests.backends.triton.test_triton_backend import check, make_batch, until


@pytest.fixture
def second() -> Iterator[KServeServer]:
    """A second server with the same model."""
    with KServeServer() as running:
        yield running


def test_the_least_loaded_server_is_called(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """Each call goes to the server with fewer calls in progress."""
    backend = connect(server, second)
    server.fault = second.fault = Fault.SILENT
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(backend.run, make_batch()) for _ in range(6)]
        until(lambda: len(server.shapes) + len(second.shapes) == 6)
        assert (len(server.shapes), len(second.shapes)) == (3, 3)
        backend.close()
        assert all(isinstance(run.exception(), BackendUnreachableError) for run in runs)


def test_a_server_that_hangs_gets_no_more_calls(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """While one call hangs on a server, all others go to the second server."""
    backend = connect(server, second)
    server.fault = second.fault = Fault.SILENT
    with ThreadPoolExecutor() as pool:
        held = pool.submit(backend.run, make_batch())
        until(lambda: server.shapes or second.shapes)
        free = second if server.shapes else server
        free.fault = Fault.NONE
        for _ in range(5):
            check(backend)
        assert len(free.shapes) == 5
        backend.close()
        assert isinstance(held.exception(), BackendUnreachableError)


@pytest.mark.parametrize("fault", [Fault.QUEUE_FULL, Fault.EXHAUSTED])
def test_a_full_server_stays_in_use(
    fault: Fault, server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """A server that keeps refusing because of overload still gets its share of the calls."""
    backend = connect(server, second)
    server.fault = fault
    refused = 0
    for _ in range(4 * FAILURES_MAX):
        try:
            backend.run(make_batch())
        except BackendOverloadedError:
            refused += 1
    assert refused == len(server.shapes) == len(second.shapes) == 2 * FAILURES_MAX


def test_lanes_are_those_of_all_servers(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """Each server adds its instances; one that is away counts as much as the first."""
    server.instances, second.instances = 2, 3
    assert connect(server, second).lanes == 6
    second.stop()
    assert connect(server, second).lanes == 5


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.UNLOADED])
def test_another_server_runs_a_lost_request(
    fault: Fault, server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """The other server runs a request that the first one lost, and all later ones."""
    backend = connect(server, second)
    server.fault = fault
    for _ in range(4):
        check(backend)
    assert (len(server.shapes), len(second.shapes)) == (1, 4)
    assert backend.availability.available


def test_a_server_that_is_killed_is_replaced(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """The other server runs the request that was in progress on a server that was killed."""
    backend = connect(server, second)
    server.fault = Fault.SILENT
    with ThreadPoolExecutor() as pool:
        run = pool.submit(check, backend)
        assert server.entered.wait(PATIENCE_S)
        server.stop()
        run.result(PATIENCE_S)
    assert len(second.shapes) == 1


@pytest.mark.parametrize("fault", [Fault.QUEUE_FULL, Fault.REFUSED])
def test_only_lost_requests_are_retried(
    fault: Fault, server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """A full queue or a refused batch is an error at once."""
    backend = connect(server, second)
    server.fault = second.fault = fault
    error = BackendOverloadedError if fault is Fault.QUEUE_FULL else BackendError
    with pytest.raises(error):
        backend.run(make_batch())
    assert len(server.shapes) + len(second.shapes) == 1


def test_runs_fail_at_once_while_all_servers_are_away(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """Without a reachable server, runs fail without a call; a server that returns is used again."""
    backend = connect(server, second)
    told: list[bool] = []
    back = threading.Event()

    def note(available: bool) -> None:  # noqa: FBT001 - the type of watchers
        told.append(available)
        if available:
            back.set()

    backend.availability.watch(note)
    server.fault = second.fault = Fault.UNAVAILABLE
    with pytest.raises(BackendUnreachableError):
        backend.run(make_batch())
    assert told == [False]
    sent = len(server.shapes) + len(second.shapes)
    with pytest.raises(BackendUnreachableError, match="none of 2"):
        backend.run(make_batch())
    assert len(server.shapes) + len(second.shapes) == sent == 2
    second.fault = Fault.NONE
    assert back.wait(PATIENCE_S)
    check(backend)
    assert told == [False, True]


@pytest.mark.usefixtures("often_checked")
def test_a_loss_is_seen_without_calls(server: KServeServer, connect: Connect) -> None:
    """Health checks notice a lost server or model while there are no calls."""
    backend = connect(server)
    server.ready = False
    until(lambda: not backend.availability.available)
    server.ready = True
    until(lambda: backend.availability.available)
    server.stop()
    until(lambda: not backend.availability.available)
    server.start()
    until(lambda: backend.availability.available)
    check(backend)


def test_a_silent_server_is_replaced(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """A server that accepts calls and never answers is no longer called; the other one is."""
    backend = connect(server, second, timeout_s=1)
    server.fault = Fault.SILENT

    def is_given_up() -> bool:
        return all(calls.map(_runs, [backend] * 4 * FAILURES_MAX))

    # At once, as each that meets the silent server waits for a second.
    with ThreadPoolExecutor(4 * FAILURES_MAX) as calls:
        until(is_given_up)
    assert backend.availability.available
    sent = len(server.shapes)
    for _ in range(3):
        check(backend)
    assert len(server.shapes) == sent


def test_the_only_server_is_not_called_while_it_is_silent(
    server: KServeServer, connect: Connect
) -> None:
    """After five calls without an answer, even the only server counts as away."""
    backend = connect(server, timeout_s=0.05)
    server.fault = Fault.SILENT
    for _ in range(FAILURES_MAX):
        with pytest.raises(BackendUnreachableError):
            backend.run(make_batch())
    assert not backend.availability.available


@pytest.mark.usefixtures("often_checked")
def test_impatient_callers_do_not_close_a_server_for_long(
    server: KServeServer, connect: Connect
) -> None:
    """Short deadlines may open the circuit; the next health check closes it."""
    backend = connect(server)
    server.fault = Fault.SILENT
    for _ in range(FAILURES_MAX):
        with pytest.raises(BackendError):
            backend.run(make_batch(), RunContext(deadline=time.monotonic() + 0.02))
    server.fault = Fault.NONE
    until(lambda: backend.availability.available)
    check(backend)


def test_batches_that_fail_do_not_close_the_only_server(
    server: KServeServer, connect: Connect
) -> None:
    """Batches that the model fails on do not make the only server unavailable."""
    backend = connect(server)
    server.fault = Fault.BROKEN
    for _ in range(2 * FAILURES_MAX):
        with pytest.raises(BackendError):
            backend.run(make_batch())
    assert backend.availability.available
    server.fault = Fault.NONE
    check(backend)


def test_a_server_that_always_fails_is_not_called(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """Beside a healthy server, one that fails five times in a row gets no more calls."""
    backend = connect(server, second)
    server.fault = Fault.BROKEN
    failed = 0
    for _ in range(2 * FAILURES_MAX + 3):
        try:
            check(backend)
        except BackendError:
            failed += 1
    assert failed == FAILURES_MAX


@pytest.mark.usefixtures("often_checked")
def test_a_server_of_another_model_is_not_used(
    server: KServeServer, second: KServeServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica with another model gets no calls, and the log reports it once."""
    second.parameters = {"embedgrpc_fingerprint": "another"}
    backend = connect(server, second)
    for _ in range(4):
        check(backend)
    assert (len(server.shapes), len(second.shapes)) == (4, 0)
    looks = second.looks
    until(lambda: second.looks > looks + 1)
    records = [one for one in caplog.records if one.getMessage().startswith("endpoint serves")]
    assert [one.__dict__["endpoint"] for one in records] == [second.address]
    second.parameters = {}
    server.fault = Fault.UNAVAILABLE
    until(lambda: _runs(backend))
    assert second.shapes


@pytest.mark.usefixtures("often_checked")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"outputs": [("sentence_embedding", "FP32", [5])]},
            "outputs sentence_embedding FP32 [5] instead of sentence_embedding FP32 [4]",
        ),
        ({"batch_max": 8}, "max_batch_size 8 instead of 64"),
        ({"parameters": {"embedgrpc_source": "x"}}, "another value of the parameter embedgrpc_so"),
        ({"inputs": [("input_ids", "INT32"), ("attention_mask", "INT64")]},
         "inputs input_ids INT32 [-], attention_mask INT64 [-] instead of input_ids INT64 [-]"),
    ],
)  # fmt: skip
def test_a_model_that_changes_is_not_used(
    change: dict[str, Any],
    problem: str,
    server: KServeServer,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A model that is replaced by one with other tensors is noticed while its server is ready."""
    backend = connect(server)
    before = {name: getattr(server, name) for name in change}
    for name, value in change.items():
        setattr(server, name, value)
    until(lambda: not backend.availability.available)
    (record,) = [one for one in caplog.records if one.getMessage().startswith("endpoint serves")]
    assert f"{server.address} has {problem}" in record.__dict__["problem"]
    for name, value in before.items():
        setattr(server, name, value)
    until(lambda: backend.availability.available)


@pytest.mark.usefixtures("often_checked")
def test_harmless_changes_are_accepted(server: KServeServer, connect: Connect) -> None:
    """Threads, instances and larger batches may change."""
    backend = connect(server)
    looks = server.looks
    server.batch_max, server.instances, server.parameters = 128, 3, {"intra_op_threads": "4"}
    until(lambda: server.looks > looks + 1)
    assert backend.availability.available


def _runs(backend: TritonBackend) -> bool:
    try:
        check(backend)
    except BackendUnreachableError:
        return False
    return True


@pytest.mark.usefixtures("often_checked")
def test_one_of_two_is_enough_to_start(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """A replica that is away at the start is used once it comes."""
    second.stop()
    backend = connect(server, second)
    check(backend)
    second.start()
    server.fault = Fault.UNAVAILABLE
    until(lambda: _runs(backend))
    assert second.shapes
