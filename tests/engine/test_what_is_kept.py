"""Finished work is freed at once, without the garbage collector."""

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from embedgrpc.backends.base import NO_CONTEXT, BackendOverloadedError, PaddedBatch, RunContext
from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.errors import Reason
from embedgrpc.engine.pipeline import _Gathered
from embedgrpc.engine.results.rows import OutputRows, cut_rows
from embedgrpc.engine.results.sparse import SparseVector
from embedgrpc.engine.scheduling.deduplication import RunningEntries
from embedgrpc.engine.work import Call, Job, QueuedSequence
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING, TOKEN_EMBEDDINGS, TOKEN_WEIGHTS
from tests.engine.fakes import (
    BROKEN,
    OUTPUT,
    FakeBackend,
    RecordingSink,
    inputs_of,
    next_turn,
    running,
    sequence_of,
)

INTERACTIVE = Call(WorkClass.INTERACTIVE)
_HELD_BY_THREADS = 3


@pytest.fixture
def collector_off() -> Iterator[None]:
    """Turn the garbage collector off, so that cycles are not freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(kind: type) -> int:
    """Count the objects of a class."""
    return sum(type(one) is kind for one in gc.get_objects())


@pytest.mark.usefixtures("collector_off")
async def test_done_jobs_leave_no_queue_entries() -> None:
    """A job that was answered holds neither its queue entries nor their sequences."""
    backend = FakeBackend()
    with running(backend) as engine:
        before, jobs_before = alive(QueuedSequence), alive(Job)
        for number in range(20):
            await engine.pipeline.run(inputs_of([f"a{number}", f"b{number}"]), INTERACTIVE)
        sink = RecordingSink()
        engine.scheduler.submit(engine.job(["c", "d" + BROKEN], INTERACTIVE, sink))
        await sink.done.wait()
        await asyncio.to_thread(engine.scheduler.close)
        await next_turn()
        assert alive(QueuedSequence) == before
        # A thread may still hold its last task.
        assert alive(Job) - jobs_before <= _HELD_BY_THREADS


@pytest.mark.usefixtures("collector_off")
async def test_timers_of_answered_calls_hold_nothing() -> None:
    """A call with a distant deadline is freed when it is answered."""
    with running(FakeBackend()) as engine:
        before = alive(_Gathered)
        for number in range(20):
            call = Call(WorkClass.INTERACTIVE, deadline=time.monotonic() + 3600)
            await engine.pipeline.run(inputs_of([f"text {number}"]), call)
        assert alive(_Gathered) - before <= _HELD_BY_THREADS


@pytest.mark.parametrize("pad_left", [False, True])
def test_rows_of_tokens_do_not_hold_their_batch(*, pad_left: bool) -> None:
    """Vectors of tokens, which wait for slow readers, are no views of a batch."""
    results: dict[str, FloatArray] = {
        TOKEN_EMBEDDINGS: np.ones((64, 128, 8), np.float32),
        TOKEN_WEIGHTS: np.ones((64, 128), np.float32),
    }
    batches = [weakref.ref(one) for one in results.values()]
    rows = cut_rows(
        results,
        outputs=[TOKEN_EMBEDDINGS, TOKEN_WEIGHTS],
        positions=[3],
        lengths=[5],
        pad_left=pad_left,
    )
    results.clear()
    assert [batch() for batch in batches] == [None, None]
    assert rows.by_token[TOKEN_EMBEDDINGS][0].shape == (5, 8)
    assert rows.by_token[TOKEN_WEIGHTS][0].shape == (5,)


@pytest.mark.parametrize(("position", "positions"), [(0, [0, 1]), (3, [3, 4]), (2, [4, 2])])
def test_rows_are_those_of_their_positions(position: int, positions: list[int]) -> None:
    """Consecutive rows are cut out like scattered ones."""
    del position
    batch = np.arange(12, dtype=np.float32).reshape(6, 2)
    rows = cut_rows(
        {SENTENCE_EMBEDDING: batch},
        outputs=[SENTENCE_EMBEDDING],
        positions=positions,
        lengths=[1, 1],
        pad_left=False,
    )
    assert rows.by_sequence[SENTENCE_EMBEDDING].tolist() == batch[positions].tolist()


class _MiscountingBackend(FakeBackend):
    """Returns more rows, or fewer, than requested."""

    more = 0

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        rows = super().run(batch, context)
        return {
            name: np.resize(one, (len(one) + self.more, *one.shape[1:]))
            for name, one in rows.items()
        }


@pytest.mark.parametrize("more", [-1, 1])
async def test_an_answer_with_another_number_of_rows_is_none(more: int) -> None:
    """If the number of rows is wrong, no caller gets any: their owners are unknown."""
    backend = _MiscountingBackend()
    backend.more = more
    with running(backend) as engine:
        sink = RecordingSink()
        engine.scheduler.submit(engine.job(["one", "another", "third"], INTERACTIVE, sink))
        await sink.done.wait()
    assert not sink.rows
    assert {error.reason for error in sink.errors.values()} == {Reason.BACKEND_FAILED}


class _FullBackend(FakeBackend):
    """Refuses all work."""

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        super().run(batch, context)
        raise BackendOverloadedError("its queue is full")


async def test_a_full_backend_tells_when_to_come_back() -> None:
    """Callers are told to wait a moment after a backend's refusal; retrying at once adds load."""
    with running(_FullBackend()) as engine:
        sink = RecordingSink()
        engine.scheduler.submit(engine.job(["text"], INTERACTIVE, sink))
        await sink.done.wait()
    assert sink.errors[0].reason is Reason.OVERLOADED
    assert 0.1 <= (sink.errors[0].retry_delay_s or 0) <= 30


@pytest.mark.parametrize("text", ["good" + BROKEN, "good"])
async def test_failed_batches_say_nothing_of_the_rate(text: str) -> None:
    """A batch that fails at once does not make the model look fast."""
    with running(FakeBackend()) as engine:
        before = engine.admission.drain_rate.token_s
        sink = RecordingSink()
        engine.scheduler.submit(engine.job([text], INTERACTIVE, sink))
        await sink.done.wait()
        await asyncio.to_thread(engine.scheduler.close)
        assert (engine.admission.drain_rate.token_s == before) == (BROKEN in text)


def _queued(admission: Admission, *texts: str, deadline: float = 1e18) -> list[QueuedSequence]:
    sink = RecordingSink()
    job = Job(
        call=Call(WorkClass.INTERACTIVE, deadline=deadline),
        outputs=(OUTPUT,),
        sink=sink,
        inputs=len(texts),
        reservation=admission.admit_always(),
    )
    return [QueuedSequence(job, index, sequence_of(one), 0) for index, one in enumerate(texts)]


def test_who_left_is_not_told_that_it_is_too_late() -> None:
    """In an entry that is no longer wanted, only sequences that were not cancelled expire."""
    admission = Admission(max_inputs=10, max_tokens=100, batch_tokens=10, max_queue_s=10)
    (expired,) = _queued(admission, "text", deadline=5.0)
    (left,) = _queued(admission, "text")
    left.job.cancelled = True
    (wanted,) = _queued(admission, "other")
    running_rows, late = RunningEntries().begin([[expired, left], [wanted]], now=6.0)
    assert running_rows == [[wanted]]
    assert late == [[expired]]


async def test_a_cancelled_job_is_told_nothing() -> None:
    """The sink of a job that was cancelled while it ran gets neither rows nor errors."""
    backend = FakeBackend()
    with running(backend) as engine:
        backend.gate.close()
        sink, other = RecordingSink(), RecordingSink()
        job = engine.job(["text"], INTERACTIVE, sink)
        engine.scheduler.submit(job)
        backend.gate.wait_for(1)
        engine.scheduler.submit(engine.job(["text"], INTERACTIVE, other))
        engine.scheduler.cancel(job)
        job.reservation.release_all()
        backend.gate.open()
        await other.done.wait()
        assert not sink.answers
        assert (
            engine.admission.ledger.outcome_counts[WorkClass.INTERACTIVE, SequenceOutcome.CANCELLED]
            == 1
        )


@pytest.mark.parametrize(
    ("terms", "indices"),
    [(1, [9]), (2, [4, 9]), (3, [2, 4, 9]), (4, [2, 4, 7, 9]), (9, [2, 4, 7, 9])],
)
def test_heaviest_terms_keep_their_order(terms: int, indices: list[int]) -> None:
    """However few terms are kept, ids ascend; of equal weights the lower ids are kept."""
    vector = SparseVector(
        np.array([2, 4, 7, 9], np.uint32), np.array([0.5, 0.75, 0.5, 1.0], np.float32)
    )
    kept = vector.heaviest(terms)
    assert kept.indices.tolist() == indices
    weights = dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))
    assert kept.values.tolist() == [weights[one] for one in indices]


def test_whole_rows_keep_what_was_asked() -> None:
    """The rows kept are those at the given positions, of every output."""
    rows = OutputRows(
        {SENTENCE_EMBEDDING: np.arange(6, dtype=np.float32).reshape(3, 2)},
        {TOKEN_WEIGHTS: [np.full(one, one, np.float32) for one in range(3)]},
    )
    kept: Any = rows.keep([2, 0])
    assert kept.by_sequence[SENTENCE_EMBEDDING].tolist() == [[4, 5], [0, 1]]
    assert [one.tolist() for one in kept.by_token[TOKEN_WEIGHTS]] == [[2, 2], []]
