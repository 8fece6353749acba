import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedgrpc.backends.base import (
    BackendCancelledError,
    BackendDeadlineError,
    BackendError,
    BackendOverloadedError,
    BackendUnreachableError,
    Cancellation,
    PaddedBatch,
    RunContext,
)
from embedgrpc.backends.triton.backend import TritonBackend
from embedgrpc.backends.triton.loops import LoopThread
from embedgrpc.models.remote.outputs import ServedOutput
from tests.backends.triton.conftest import Connect
from tests.backends.triton.kserve_server import PATIENCE_S, Fault, KServeServer, summary
from tests.backends.triton.slow_link import slow_link


def make_batch(
    sequences: int = 3, tokens: int = 5, outputs: tuple[str, ...] = ("sentence_embedding",)
) -> PaddedBatch:
    """A batch in which every sequence has other ids and another length."""
    ids = np.arange(sequences * tokens, dtype=np.int64).reshape(sequences, tokens) + 1
    lengths = 1 + np.arange(sequences)[:, None] % tokens
    mask = (np.arange(tokens)[None, :] < lengths).astype(np.int64)
    return PaddedBatch(ids * mask, mask, mask // 2, outputs)


def vectors_of(batch: PaddedBatch) -> np.ndarray:
    """What the server's model makes of a batch."""
    made = summary(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    return np.asarray(made["sentence_embedding"])


def check(backend: TritonBackend, batch: PaddedBatch | None = None) -> None:
    """Runs a batch, whose answer must be right."""
    batch = batch or make_batch()
    vectors = backend.run(batch)["sentence_embedding"]
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.flags.writeable
    np.testing.assert_array_equal(vectors, vectors_of(batch))


def until(condition: Callable[[], object]) -> None:
    """Waits for something that nobody can signal."""
    ends = time.monotonic() + PATIENCE_S
    never = threading.Event()
    while not condition():
        assert time.monotonic() < ends
        never.wait(0.01)


def test_a_batch_is_run(server: KServeServer, connect: Connect) -> None:
    """A batch goes to the server and its rows come back in order, each time."""
    backend = connect(server)
    check(backend)
    check(backend, make_batch(1, 1))
    assert server.shapes == [(3, 5), (1, 1)]
    assert backend.device == "triton"
    assert not backend.lanes_compete


def test_a_large_batch_is_split(server: KServeServer, connect: Connect) -> None:
    """More sequences than max_batch_size go in several requests, and come back as one."""
    server.batch_max = 4
    check(connect(server), make_batch(10, 3))
    assert server.shapes == [(4, 3), (4, 3), (2, 3)]


@pytest.mark.parametrize("batch_max", [0, 64])
def test_a_model_without_batch_limit(
    batch_max: int, server: KServeServer, connect: Connect
) -> None:
    """A model whose shapes hold the batch, and a server without configurations, are served."""
    server.batch_max = 0
    server.has_config = batch_max == 0
    check(connect(server), make_batch(100, 2))
    assert server.shapes == [(100, 2)]


@pytest.mark.parametrize("kind", ["INT32", "INT64"])
def test_inputs_have_the_types_that_are_taken(
    kind: str, server: KServeServer, connect: Connect
) -> None:
    """Ids are sent as the model takes them; inputs that it lacks are left out."""
    server.inputs = [("attention_mask", "FP32"), ("input_ids", kind)]
    backend = connect(server)
    batch = make_batch()
    found = backend.run(batch)["sentence_embedding"]
    np.testing.assert_array_equal(found[:, :3], vectors_of(batch)[:, :3])


def test_an_id_that_does_not_fit_is_refused(server: KServeServer, connect: Connect) -> None:
    """An id beyond INT32 is an error, and not another id."""
    server.inputs = [("attention_mask", "INT64"), ("input_ids", "INT32")]
    ids = np.array([[2**40]], np.int64)
    backend = connect(server)
    with pytest.raises(BackendError, match="too large") as caught:
        backend.run(PaddedBatch(ids, ids // ids, ids * 0, ("sentence_embedding",)))
    assert str(2**40) not in str(caught.value)


def test_further_inputs_are_filled(server: KServeServer, connect: Connect) -> None:
    """What else the model takes is computed from ids and mask."""
    server.inputs.append(("position_ids", "INT64"))
    backend = connect(server, inputs={"position_ids": lambda ids, mask: ids * 0 + mask})
    check(backend)


@pytest.mark.parametrize("kind", ["FP32", "FP16", "BF16", "FP64"])
def test_outputs_of_all_types_are_read(kind: str, server: KServeServer, connect: Connect) -> None:
    """Half precision, brain floats and doubles become float32."""
    server.outputs = [("sentence_embedding", kind, [4])]
    check(connect(server), make_batch(2, 3))


@pytest.mark.parametrize("kind", ["FP32", "FP64"])
def test_typed_contents_are_read(kind: str, server: KServeServer, connect: Connect) -> None:
    """Servers other than Triton answer with typed contents."""
    server.outputs = [("sentence_embedding", kind, [4])]
    server.typed = True
    check(connect(server))


def test_one_output_makes_several(server: KServeServer, connect: Connect) -> None:
    """What is made here of an output is made of the same answer; it is asked for once."""
    server.outputs = [("last_hidden_state", "FP16", [-1, 3])]
    outputs = {
        "first": ServedOutput("last_hidden_state", (3,), lambda hidden, _: hidden[:, 0]),
        "counts": ServedOutput(
            "last_hidden_state", (None,), lambda hidden, mask: hidden[:, :, 1] * mask
        ),
    }
    batch = make_batch(outputs=("counts", "first"))
    found = connect(server, outputs=outputs).run(batch)
    np.testing.assert_array_equal(found["counts"], batch.attention_mask)
    np.testing.assert_array_equal(found["first"][:, 0], batch.input_ids[:, 0])


@pytest.mark.parametrize(
    "fault",
    [
        Fault.WRONG_ROWS,
        Fault.WRONG_WIDTH,
        Fault.SHORT_BYTES,
        Fault.MISSING_OUTPUT,
        Fault.WRONG_TYPE,
        Fault.FEW_RAW,
        Fault.REFUSED,
        Fault.BROKEN,
    ],
)
def test_wrong_answers_are_errors(fault: Fault, server: KServeServer, connect: Connect) -> None:
    """No answer but the right one is taken; the server's words are passed to nobody."""
    backend = connect(server)
    server.fault = fault
    with pytest.raises(BackendError) as caught:
        backend.run(make_batch())
    assert type(caught.value) is BackendError
    assert "4711" not in str(caught.value)
    assert "/models" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    server.fault = Fault.NONE
    check(backend)


def test_nan_is_passed_on(server: KServeServer, connect: Connect) -> None:
    """Whether numbers are finite is judged row by row, and not here."""
    backend = connect(server)
    server.fault = Fault.NAN
    assert np.isnan(backend.run(make_batch())["sentence_embedding"]).all()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.QUEUE_FULL, BackendOverloadedError),
        (Fault.EXHAUSTED, BackendOverloadedError),
        (Fault.QUEUED_TOO_LONG, BackendDeadlineError),
        (Fault.UNAVAILABLE, BackendUnreachableError),
        (Fault.UNLOADED, BackendUnreachableError),
    ],
)
def test_one_status_has_many_meanings(
    fault: Fault, error: type[BackendError], server: KServeServer, connect: Connect
) -> None:
    """What Triton calls UNAVAILABLE is told apart; all but absence leaves the server in use."""
    backend = connect(server)
    server.fault = fault
    with pytest.raises(BackendError) as caught:
        backend.run(make_batch())
    assert type(caught.value) is error
    assert backend.availability.available == (error is not BackendUnreachableError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attention_mask": np.ones((3, 4), np.int64)},
        {"token_type_ids": np.ones((2, 5), np.int64)},
        {"input_ids": np.ones((3, 6), np.int64)},
    ],
)
@pytest.mark.parametrize("batch_max", [2, 64])
def test_unequal_arrays_are_not_sent(
    wrong: dict[str, np.ndarray], batch_max: int, server: KServeServer, connect: Connect
) -> None:
    """Lengths that differ would fail inside the model: nothing is sent."""
    server.batch_max = batch_max
    batch = make_batch()
    arrays = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.token_type_ids,
    } | wrong
    backend = connect(server)
    with pytest.raises(BackendError, match="a batch of ids"):
        backend.run(PaddedBatch(**arrays, outputs=batch.outputs))
    assert server.shapes == []


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_is_not_sent(
    shape: tuple[int, int], server: KServeServer, connect: Connect
) -> None:
    """A batch without sequences, or of empty ones, is refused."""
    ids = np.zeros(shape, np.int64)
    backend = connect(server)
    with pytest.raises(BackendError, match="a batch of ids"):
        backend.run(PaddedBatch(ids, ids, ids, ("sentence_embedding",)))
    with pytest.raises(BackendError, match="no output logits"):
        backend.run(make_batch(outputs=("logits",)))


def test_metadata_is_sent_along(server: KServeServer, connect: Connect) -> None:
    """What the context holds reaches the server."""
    context = RunContext(metadata=(("traceparent", "00-a-b-01"), ("tracestate", "x=y")))
    connect(server).run(make_batch(), context)
    assert server.metadata[0]["traceparent"] == "00-a-b-01"
    assert server.metadata[0]["tracestate"] == "x=y"


def test_deadline_ends_a_call(server: KServeServer, connect: Connect) -> None:
    """When the callers' time is over, the call is ended at the server too."""
    backend = connect(server)
    server.fault = Fault.SILENT
    with pytest.raises(BackendDeadlineError):
        backend.run(make_batch(), RunContext(deadline=time.monotonic() + 0.2))
    assert server.cancelled.wait(PATIENCE_S)
    sent = len(server.shapes)
    with pytest.raises(BackendDeadlineError, match="before"):
        backend.run(make_batch(), RunContext(deadline=time.monotonic() - 1))
    assert len(server.shapes) == sent


def test_silence_ends_a_call(server: KServeServer, connect: Connect) -> None:
    """A server that never answers is away, to whoever has more time."""
    backend = connect(server, timeout_s=0.2)
    server.fault = Fault.SILENT
    with pytest.raises(BackendUnreachableError, match="did not answer in time"):
        backend.run(make_batch())


def test_cancellation_ends_a_call(server: KServeServer, connect: Connect) -> None:
    """When nobody waits any more, the call is ended at once, at the server too."""
    backend = connect(server)
    server.fault = Fault.SILENT
    cancellation = Cancellation()
    with ThreadPoolExecutor() as pool:
        run = pool.submit(backend.run, make_batch(), RunContext(cancellation=cancellation))
        assert server.entered.wait(PATIENCE_S)
        cancellation.cancel()
        with pytest.raises(BackendCancelledError):
            run.result(PATIENCE_S)
    assert server.cancelled.wait(PATIENCE_S)
    with pytest.raises(BackendCancelledError):
        backend.run(make_batch(), RunContext(cancellation=cancellation))


def test_closing_ends_calls(server: KServeServer, connect: Connect) -> None:
    """A run that is under way when the backend is closed fails, as do later ones."""
    backend = connect(server)
    server.fault = Fault.SILENT
    with ThreadPoolExecutor() as pool:
        run = pool.submit(backend.run, make_batch())
        assert server.entered.wait(PATIENCE_S)
        backend.close()
        with pytest.raises(BackendUnreachableError):
            run.result(PATIENCE_S)
    with pytest.raises(BackendUnreachableError, match="being closed"):
        backend.run(make_batch())


def test_a_loop_that_ends_leaves_nobody_waiting(server: KServeServer, connect: Connect) -> None:
    """Where the event loop is closed first, runs fail instead of waiting for it."""
    thread = LoopThread()
    backend = connect(server, loop=thread.loop)
    check(backend)
    asyncio.run_coroutine_threadsafe(_end_tasks(), thread.loop).result(PATIENCE_S)
    thread.close()
    with pytest.raises(BackendUnreachableError, match="the event loop is closed"):
        backend.run(make_batch())


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"inputs": [("input_ids", "INT64")]}, "no input attention_mask"),
        ({"inputs": [("text", "BYTES"), ("task", "INT64")]}, "takes text"),
        ({"inputs": [("input_ids", "UINT8")]}, "of type UINT8"),
        ({"outputs": [("scores", "INT64", [1])]}, "no output of floating-point numbers"),
        ({"decoupled": True}, "is decoupled"),
    ],
)
def test_models_that_cannot_be_used(
    change: dict[str, object], problem: str, server: KServeServer, connect: Connect
) -> None:
    """What cannot be served is refused when it is opened, in words that say why."""
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(BackendError, match=problem) as caught:
        connect(server)
    assert type(caught.value) is BackendError


def test_an_absent_server_is_told_apart(connect: Connect) -> None:
    """Where nobody listens, and where the model is not there, it may be so later."""
    with KServeServer() as server:
        server.ready = False
        with pytest.raises(BackendUnreachableError, match="not ready"):
            connect(server)
        address = server.address
    with pytest.raises(BackendUnreachableError, match=address):
        connect(address)


@pytest.mark.parametrize(("instances", "lanes", "expected"), [(3, 0, 4), (3, 2, 2), (500, 0, 64)])
def test_lanes_follow_instances(
    instances: int, lanes: int, expected: int, server: KServeServer, connect: Connect
) -> None:
    """As many batches run at once as the server has instances, and one is on its way."""
    server.instances = instances
    assert connect(server, lanes=lanes).lanes == expected


async def test_a_slow_link_is_no_broken_one(server: KServeServer, connect: Connect) -> None:
    """A server that is far away takes longer to connect to than to find absent."""
    async with slow_link(server.address, delay_s=0.15) as address:
        backend = await asyncio.to_thread(connect, address)
        await asyncio.to_thread(check, backend)
        await asyncio.to_thread(backend.close)
