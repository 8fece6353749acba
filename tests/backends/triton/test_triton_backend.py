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
from tests.backends.triton.kserve_server import PATIENCE_S, Fault, KServeServer, spell, summary
from tests.backends.triton.slow_link import slow_link


def make_batch(
    sequences: int = 3, tokens: int = 5, outputs: tuple[str, ...] = ("sentence_embedding",)
) -> PaddedBatch:
    """Make a batch whose sequences differ in ids and length."""
    ids = np.arange(sequences * tokens, dtype=np.int64).reshape(sequences, tokens) + 1
    lengths = 1 + np.arange(sequences)[:, None] % tokens
    mask = (np.arange(tokens)[None, :] < lengths).astype(np.int64)
    return PaddedBatch(ids * mask, mask, mask // 2, outputs)


def vectors_of(batch: PaddedBatch) -> np.ndarray:
    """Return the vectors that the server's model makes of a batch."""
    made = summary(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    return np.asarray(made["sentence_embedding"])


def check(backend: TritonBackend, batch: PaddedBatch | None = None) -> None:
    """Run a batch, and check the answer."""
    batch = batch or make_batch()
    vectors = backend.run(batch)["sentence_embedding"]
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.flags.writeable
    np.testing.assert_array_equal(vectors, vectors_of(batch))


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition without a signal, by polling."""
    ends = time.monotonic() + PATIENCE_S
    never = threading.Event()
    while not condition():
        assert time.monotonic() < ends
        never.wait(0.01)


def test_a_batch_is_run(server: KServeServer, connect: Connect) -> None:
    """A batch goes to the server, and its rows come back in order."""
    backend = connect(server)
    check(backend)
    check(backend, make_batch(1, 1))
    assert server.shapes == [(3, 5), (1, 1)]
    assert backend.device == "triton"
    assert not backend.lanes_compete
    assert not backend.can_give_way


def test_a_large_batch_is_split(server: KServeServer, connect: Connect) -> None:
    """A batch above max_batch_size is sent in several requests, and returned as one."""
    server.batch_max = 4
    check(connect(server), make_batch(10, 3))
    assert server.shapes == [(4, 3), (4, 3), (2, 3)]


@pytest.mark.parametrize("batch_max", [0, 64])
def test_a_model_without_batch_limit(
    batch_max: int, server: KServeServer, connect: Connect
) -> None:
    """A model with max_batch_size 0, and a server without configurations, can be used."""
    server.batch_max = 0
    server.has_config = batch_max == 0
    check(connect(server), make_batch(100, 2))
    assert server.shapes == [(100, 2)]


@pytest.mark.parametrize("kind", ["INT32", "INT64"])
def test_inputs_have_the_types_of_the_model(
    kind: str, server: KServeServer, connect: Connect
) -> None:
    """Ids are sent in the model's type, and inputs that it lacks are left out."""
    server.inputs = [("attention_mask", "FP32"), ("input_ids", kind)]
    backend = connect(server)
    batch = make_batch()
    found = backend.run(batch)["sentence_embedding"]
    np.testing.assert_array_equal(found[:, :3], vectors_of(batch)[:, :3])


def test_an_id_that_does_not_fit_is_refused(server: KServeServer, connect: Connect) -> None:
    """An id beyond INT32 is an error, and does not wrap around."""
    server.inputs = [("attention_mask", "INT64"), ("input_ids", "INT32")]
    ids = np.array([[2**40]], np.int64)
    backend = connect(server)
    with pytest.raises(BackendError, match="too large") as caught:
        backend.run(PaddedBatch(ids, ids // ids, ids * 0, ("sentence_embedding",)))
    assert str(2**40) not in str(caught.value)


def test_further_inputs_are_filled(server: KServeServer, connect: Connect) -> None:
    """Further inputs are computed from ids and mask."""
    server.inputs.append(("position_ids", "INT64"))
    backend = connect(server, inputs={"position_ids": lambda ids, mask: ids * 0 + mask})
    check(backend)


@pytest.mark.parametrize("kind", ["FP32", "FP16", "BF16", "FP64"])
def test_outputs_of_all_types_are_read(kind: str, server: KServeServer, connect: Connect) -> None:
    """Outputs of all floating-point types become float32."""
    server.outputs = [("sentence_embedding", kind, [4])]
    check(connect(server), make_batch(2, 3))


@pytest.mark.parametrize("kind", ["FP32", "FP64"])
def test_typed_contents_are_read(kind: str, server: KServeServer, connect: Connect) -> None:
    """Answers with typed contents, from servers other than Triton, are read."""
    server.outputs = [("sentence_embedding", kind, [4])]
    server.typed = True
    check(connect(server))


def test_one_served_output_makes_several(server: KServeServer, connect: Connect) -> None:
    """Several of our outputs may come from one of the server's, which is requested once."""
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
    """A wrong answer is an error, which contains nothing of the server's text."""
    backend = connect(server)
    server.fault = fault
    with pytest.raises(BackendError) as caught:
        backend.run(make_batch())
    assert type(caught.value) is BackendError
    assert "qwxz" not in str(caught.value)
    assert "/models" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    server.fault = Fault.NONE
    check(backend)


def test_nan_is_passed_on(server: KServeServer, connect: Connect) -> None:
    """Values that are not finite are returned; the engine checks them row by row."""
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
def test_statuses_become_errors(
    fault: Fault, error: type[BackendError], server: KServeServer, connect: Connect
) -> None:
    """UNAVAILABLE becomes one of three errors; only a lost server stops being available."""
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
    """Arrays of different shapes, which would fail inside the model, are not sent."""
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
def test_an_empty_batch_is_not_sent(
    shape: tuple[int, int], server: KServeServer, connect: Connect
) -> None:
    """A batch without sequences or without tokens is refused, as is an unknown output."""
    ids = np.zeros(shape, np.int64)
    backend = connect(server)
    with pytest.raises(BackendError, match="a batch of ids"):
        backend.run(PaddedBatch(ids, ids, ids, ("sentence_embedding",)))
    with pytest.raises(BackendError, match="no output logits"):
        backend.run(make_batch(outputs=("logits",)))


def test_metadata_is_sent_along(server: KServeServer, connect: Connect) -> None:
    """The context's metadata reaches the server."""
    context = RunContext(metadata=(("traceparent", "00-a-b-01"), ("tracestate", "x=y")))
    connect(server).run(make_batch(), context)
    assert server.metadata[0]["traceparent"] == "00-a-b-01"
    assert server.metadata[0]["tracestate"] == "x=y"


def test_deadline_ends_a_call(server: KServeServer, connect: Connect) -> None:
    """The callers' deadline ends the call, on the server too."""
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
    """A server that does not answer within the time limit counts as unreachable."""
    backend = connect(server, timeout_s=0.2)
    server.fault = Fault.SILENT
    with pytest.raises(BackendUnreachableError, match="did not answer in time"):
        backend.run(make_batch())


def test_cancellation_ends_a_call(server: KServeServer, connect: Connect) -> None:
    """Cancellation ends the call at once, on the server too."""
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
    """Closing the backend ends the runs in progress, and later runs fail."""
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


def test_a_closed_loop_fails_runs(server: KServeServer, connect: Connect) -> None:
    """If the event loop is closed first, runs fail instead of waiting for it."""
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
    """A model that cannot be served is refused when it is opened, with the reason."""
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(BackendError, match=problem) as caught:
        connect(server)
    assert type(caught.value) is BackendError


def batch_of_texts(*texts: str) -> PaddedBatch:
    """Make a batch of the bytes of texts, all of one length."""
    ids = np.array([list(text.encode()) for text in texts], np.int64)
    return PaddedBatch(ids, np.ones_like(ids), ids * 0, ("sentence_embedding",))


@pytest.mark.parametrize("shape", [[-1], [-1, 1], [-1, -1]])
def test_a_model_takes_texts(shape: list[int], server: KServeServer, connect: Connect) -> None:
    """A batch of texts is sent, in each shape that an input for any number of texts may have."""
    server.inputs, server.text_shape = [("text", "BYTES")], shape
    found = connect(server).run(batch_of_texts("one", "two"))["sentence_embedding"]
    np.testing.assert_array_equal(found, spell(["one", "two"])["sentence_embedding"])


@pytest.mark.parametrize("shape", [[4, 1], [-1, 2], [-1, 1, 1], []])
def test_a_model_for_a_fixed_number_of_texts_is_refused(
    shape: list[int], server: KServeServer, connect: Connect
) -> None:
    """An input that does not take any number of single texts is named."""
    server.inputs, server.text_shape = [("text", "BYTES")], shape
    with pytest.raises(BackendError, match="must take any number of them"):
        connect(server)


def test_an_absent_server_is_unreachable(connect: Connect) -> None:
    """A model that is not ready, and a port without a listener, are refused at once."""
    with KServeServer() as server:
        server.ready = False
        with pytest.raises(BackendUnreachableError, match="not ready"):
            connect(server)
        address = server.address
    with pytest.raises(BackendUnreachableError, match=f"{address} answered UNAVAILABLE"):
        connect(address)


@pytest.mark.parametrize(("instances", "lanes", "expected"), [(3, 0, 4), (3, 2, 2), (500, 0, 64)])
def test_lanes_follow_instances(
    instances: int, lanes: int, expected: int, server: KServeServer, connect: Connect
) -> None:
    """There is one lane per instance and one for a batch in transit, 64 at most."""
    server.instances = instances
    assert connect(server, lanes=lanes).lanes == expected


async def test_a_slow_link_is_no_broken_one(server: KServeServer, connect: Connect) -> None:
    """A slow link is not taken for an absent server: connecting may outlast the backoff."""
    async with slow_link(server.address, delay_s=0.15) as address:
        backend = await asyncio.to_thread(connect, address)
        await asyncio.to_thread(check, backend)
        await asyncio.to_thread(backend.close)
