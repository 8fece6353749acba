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
    """Another server that serves the same."""
    with KServeServer() as running:
        yield running


def test_the_less_busy_server_is_called(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """While one server works, the other gets what comes."""
    backend = connect(server, second)
    server.fault = second.fault = Fault.SILENT
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(backend.run, make_batch()) for _ in range(6)]
        until(lambda: len(server.shapes) + len(second.shapes) == 6)
        assert (len(server.shapes), len(second.shapes)) == (3, 3)
        backend.close()
        assert all(isinstance(run.exception(), BackendUnreachableError) for run in runs)


def test_a_server_that_is_held_up_gets_nothing_more(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """While one call hangs on a server, all that come go to the other, not every second one."""
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
def test_a_full_server_is_not_given_up(
    fault: Fault, server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """However often a server refuses for having too much to do, it gets its share of the calls."""
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
    """Each server adds its instances; one that is away is taken to have as many."""
    server.instances, second.instances = 2, 3
    assert connect(server, second).lanes == 6
    second.stop()
    assert connect(server, second).lanes == 5


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.UNLOADED])
def test_another_server_does_it(
    fault: Fault, server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """A request that one server lost is run by the other, and the next ones go there."""
    backend = connect(server, second)
    server.fault = fault
    for _ in range(4):
        check(backend)
    assert (len(server.shapes), len(second.shapes)) == (1, 4)
    assert backend.availability.available


def test_a_server_that_is_killed_is_replaced(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """What is in progress on a server that goes away is run by the other."""
    backend = connect(server, second)
    server.fault = Fault.SILENT
    with ThreadPoolExecutor() as pool:
        run = pool.submit(check, backend)
        assert server.entered.wait(PATIENCE_S)
        server.stop()
        run.result(PATIENCE_S)
    assert len(second.shapes) == 1


@pytest.mark.parametrize("fault", [Fault.QUEUE_FULL, Fault.REFUSED])
def test_what_is_no_loss_is_not_tried_again(
    fault: Fault, server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """A full queue, or a batch that is refused, is the answer."""
    backend = connect(server, second)
    server.fault = second.fault = fault
    error = BackendOverloadedError if fault is Fault.QUEUE_FULL else BackendError
    with pytest.raises(error):
        backend.run(make_batch())
    assert len(server.shapes) + len(second.shapes) == 1


def test_all_away_is_told_at_once(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """With no server left runs fail without a call; one that is back is used again."""
    backend = connect(server, second)
    told: list[bool] = []
    back = threading.Event()

    def note(available: bool) -> None:  # noqa: FBT001 - as watchers are called
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


def test_a_loss_is_seen_without_calls(server: KServeServer, connect: Connect) -> None:
    """A server that goes away, or whose model does, is noticed while nobody calls."""
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


def test_silence_is_seen(server: KServeServer, second: KServeServer, connect: Connect) -> None:
    """A server that takes calls and never answers is given up; the other does the work."""
    backend = connect(server, second, timeout_s=0.3)
    server.fault = Fault.SILENT

    def is_given_up() -> bool:
        failed = 0
        for _ in range(4):
            try:
                check(backend)
            except BackendUnreachableError:
                failed += 1
        return not failed

    until(is_given_up)
    assert backend.availability.available
    sent = len(server.shapes)
    for _ in range(3):
        check(backend)
    assert len(server.shapes) == sent


def test_late_callers_do_not_blame_a_server_for_good(
    server: KServeServer, connect: Connect
) -> None:
    """Callers with little time may open the circuit; a server that is well is back at once."""
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
    """Whoever sends what a model fails on cannot take it from the others."""
    backend = connect(server)
    server.fault = Fault.BROKEN
    for _ in range(2 * FAILURES_MAX):
        with pytest.raises(BackendError):
            backend.run(make_batch())
    assert backend.availability.available
    server.fault = Fault.NONE
    check(backend)


def test_a_server_that_always_fails_is_left_alone(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """Beside one that is well, a server that fails again and again gets no more calls."""
    backend = connect(server, second)
    server.fault = Fault.BROKEN
    failed = 0
    for _ in range(2 * FAILURES_MAX + 3):
        try:
            check(backend)
        except BackendError:
            failed += 1
    assert failed == FAILURES_MAX


def test_a_server_of_another_model_is_not_used(
    server: KServeServer, second: KServeServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Replicas must serve the same; one that differs gets nothing, and the log says so once."""
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
    """A model that is loaded anew with other tensors is found while its server stays ready."""
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


def test_a_change_that_does_no_harm_is_none(server: KServeServer, connect: Connect) -> None:
    """Threads, instances and larger batches are the server's own business."""
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


def test_one_of_two_is_enough_to_start(
    server: KServeServer, second: KServeServer, connect: Connect
) -> None:
    """A replica that is away at the start is used when it comes."""
    second.stop()
    backend = connect(server, second)
    check(backend)
    second.start()
    server.fault = Fault.UNAVAILABLE
    until(lambda: _runs(backend))
    assert second.shapes
