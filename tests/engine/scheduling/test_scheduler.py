import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedgrpc.backends.base import NO_CONTEXT, BackendUnreachableError, PaddedBatch, RunContext
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.errors import EngineError, Reason, ShuttingDownError
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import FloatArray
from tests.engine.fakes import (
    BROKEN,
    NAN,
    NEGATIVE,
    WAIT_S,
    Engine,
    FakeBackend,
    RecordingSink,
    answer,
    inputs_of,
    next_turn,
    running,
)

INTERACTIVE = Call(WorkClass.INTERACTIVE)


async def submit(engine: Engine, texts: Sequence[str], call: Call = INTERACTIVE) -> RecordingSink:
    """Queue texts that are already tokenized."""
    sink = RecordingSink()
    engine.scheduler.submit(engine.job(texts, call, sink))
    return sink


async def hold(engine: Engine, backend: FakeBackend) -> RecordingSink:
    """Keep the only lane busy, so that everything that follows is queued."""
    backend.gate.close()
    sink = await submit(engine, ["first"])
    backend.gate.wait_for(1)
    return sink


async def test_free_lane_runs_at_once() -> None:
    """A lone text runs without waiting for others to join it."""
    backend = FakeBackend()
    with running(backend) as engine:
        sink = await submit(engine, ["alone"])
        await sink.done.wait()
    assert sink.rows == {0: answer("alone")}
    assert [batch.texts for batch in backend.batches] == [("alone",)]


async def test_work_accumulates_while_a_lane_runs() -> None:
    """Texts of many callers that arrived while a batch ran share the next one."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        sinks = [await submit(engine, [f"text {number}"]) for number in range(9)]
        backend.gate.open()
        for sink in sinks:
            await sink.done.wait()
    assert len(backend.batches) == 2
    assert [sink.rows[0] for sink in sinks] == [answer(f"text {number}") for number in range(9)]


async def test_lanes_run_at_the_same_time() -> None:
    """As many batches run at once as the backend has lanes."""
    backend = FakeBackend(lanes=3)
    alone = BatchBudget(tokens=512, sequences=1, overhead_tokens=0)
    with running(backend, budget=alone) as engine:
        backend.gate.close()
        sink = await submit(engine, ["a", "b", "c", "d"])
        backend.gate.wait_for(3)
        assert len(backend.batches) == 3
        backend.gate.open()
        await sink.done.wait()
    assert sink.rows == {index: answer(text) for index, text in enumerate("abcd")}


class _CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread wakes it up."""

    wake_ups = 0

    def call_soon_threadsafe(  # type: ignore[override]  # the rest is passed on as it is
        self, callback: Callable[..., object], *args: Any, **options: Any
    ) -> asyncio.Handle:
        self.wake_ups += 1
        return super().call_soon_threadsafe(callback, *args, **options)


def test_one_wake_up_per_batch() -> None:
    """However many callers a batch serves, it wakes the event loop once."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _CountingLoop)
        backend = FakeBackend()
        with running(backend) as engine:
            backend.gate.close()
            calls = [
                loop.create_task(
                    engine.pipeline.run(
                        inputs_of([f"{number}{letter}" for letter in "abcd"]), INTERACTIVE
                    )
                )
                for number in range(100)
            ]
            await next_turn()
            engine.wait_until_tokenized()
            before = loop.wake_ups
            backend.gate.open()
            await asyncio.gather(*calls)
            assert loop.wake_ups - before == len(backend.batches)
            assert 7 <= len(backend.batches) <= 12

    with asyncio.Runner(loop_factory=_CountingLoop) as runner:
        runner.run(run())


def test_one_wake_up_for_all_that_cannot_be_prepared() -> None:
    """A job of which no text can be prepared wakes the event loop once, not once per text."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _CountingLoop)
        with running(FakeBackend()) as engine:
            sink = RecordingSink(expected=50)
            refuse = inputs_of(
                ["text"] * 50,
                prepare=lambda ids: [EngineError("cannot be prepared") for _ in ids],
                atomic=False,
            )
            await engine.pipeline.submit(refuse, Call(WorkClass.BULK), sink)
            await sink.done.wait()
            assert sorted(sink.errors) == list(range(50))
            assert loop.wake_ups == 1

    with asyncio.Runner(loop_factory=_CountingLoop) as runner:
        runner.run(run())


async def test_expired_work_is_not_run() -> None:
    """A sequence whose deadline passed in the queue fails, and never reaches the backend."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        late = await submit(engine, ["late"], Call(WorkClass.INTERACTIVE, time.monotonic() - 1))
        alive = await submit(engine, ["alive"])
        backend.gate.open()
        await late.done.wait()
        await alive.done.wait()
    assert late.errors[0].reason is Reason.DEADLINE_EXPIRED
    assert backend.texts == ["first", "alive"]


@pytest.mark.parametrize("before", [False, True], ids=["queued", "not queued yet"])
async def test_cancelled_work_is_not_run(
    before: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    """A job that is cancelled, in the queue or before it, leaves nothing behind."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        job = engine.job(["one", "two"], INTERACTIVE, RecordingSink())
        if before:
            engine.scheduler.cancel(job)
        engine.scheduler.submit(job)
        if not before:
            engine.scheduler.cancel(job)
        assert len(engine.scheduler._dispatcher.queue) == 0
        backend.gate.open()
        await (await submit(engine, ["later"])).done.wait()
    assert sorted(backend.texts) == ["first", "later"]


async def test_bad_row_fails_alone() -> None:
    """A text with NaN in its result fails; others of the batch, even of its own job, do not."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        mixed = await submit(engine, ["good", "bad" + NAN])
        other = await submit(engine, ["other"])
        backend.gate.open()
        await mixed.done.wait()
        await other.done.wait()
    assert mixed.rows == {0: answer("good")}
    assert mixed.errors[1].reason is Reason.NON_FINITE_OUTPUT
    assert other.rows == {0: answer("other")}


async def test_failed_batch_is_divided_until_the_guilty_is_alone() -> None:
    """Only the text that makes a batch fail fails; the lane goes on."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        texts = ["one", "two" + BROKEN, "three", "four", "five"]
        riders = [await submit(engine, [text]) for text in texts]
        backend.gate.open()
        for sink in riders:
            await sink.done.wait()
        after = await submit(engine, ["after"])
        await after.done.wait()
        outcomes = engine.admission.ledger.outcome_counts
    for text, sink in zip(texts, riders, strict=True):
        if BROKEN in text:
            assert sink.errors[0].reason is Reason.BACKEND_FAILED
        else:
            assert sink.rows == {0: answer(text)}
    assert after.rows == {0: answer("after")}
    assert outcomes == {
        (WorkClass.INTERACTIVE, SequenceOutcome.ANSWERED): 6,
        (WorkClass.INTERACTIVE, SequenceOutcome.FAILED): 1,
    }


class _Infectious(FakeBackend):
    """Returns NaN for every text of a batch with a bad one."""

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> dict[str, FloatArray]:
        results = dict(super().run(batch, context))
        for rows in results.values():
            if np.isnan(rows).any():
                rows[:] = np.nan
        return results


async def test_bad_row_does_not_spoil_others() -> None:
    """If one text's NaN spreads over its batch, the others still get their results."""
    backend = _Infectious()
    with running(backend) as engine:
        await hold(engine, backend)
        texts = ["one", "two", "bad" + NAN, "four"]
        sink = await submit(engine, texts)
        backend.gate.open()
        await sink.done.wait()
    assert sink.rows == {index: answer(texts[index]) for index in (0, 1, 3)}
    assert sink.errors[2].reason is Reason.NON_FINITE_OUTPUT


class _Away(FakeBackend):
    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> dict[str, FloatArray]:
        del batch, context
        raise BackendUnreachableError("127.0.0.1:1 does not answer")


class _Forgetful(FakeBackend):
    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> dict[str, FloatArray]:
        return {name: rows[:-1] for name, rows in super().run(batch, context).items()}


class _Silent(FakeBackend):
    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> dict[str, FloatArray]:
        del batch, context
        return {}


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (_Away, Reason.BACKEND_UNAVAILABLE),
        (_Forgetful, Reason.BACKEND_FAILED),
        (_Silent, Reason.INTERNAL),
    ],
)
async def test_lane_outlives_any_fault(backend: type[FakeBackend], reason: Reason) -> None:
    """A backend that is unreachable or returns nonsense fails each batch, and the lane goes on."""
    with running(backend()) as engine:
        for _ in range(2):
            sink = await submit(engine, ["text"])
            await sink.done.wait()
            assert sink.errors[0].reason is reason
        assert all(lane.is_alive() for lane in engine.scheduler._lanes)


async def test_sequence_that_cannot_be_laid_out_fails() -> None:
    """A fault before the backend is reached is reported like one behind it."""
    backend = FakeBackend()
    with running(backend) as engine:
        sink = RecordingSink(expected=1)
        job = engine.job(["text"], INTERACTIVE, sink)
        assert job.sequences[0] is not None
        wrong = job.sequences[0].__class__(
            job.sequences[0].input_ids, job.sequences[0].input_ids[1:], 4
        )
        job.sequences = [wrong]
        engine.scheduler.submit(job)
        await sink.done.wait()
        after = await submit(engine, ["after"])
        await after.done.wait()
    assert sink.errors[0].reason is Reason.INTERNAL
    assert after.rows == {0: answer("after")}


class _RaisingSink(RecordingSink):
    """Raises on rows and, if told to, on failures as well."""

    always = False

    def succeeded(self, indices: Sequence[int], rows: OutputRows) -> None:
        del indices, rows
        raise ValueError("a sink with a text in its message")

    def failed(self, indices: Sequence[int], error: EngineError) -> None:
        if self.always:
            raise ValueError("a sink with a text in its message")
        super().failed(indices, error)


@pytest.mark.parametrize("always", [False, True])
async def test_raising_sink_costs_nobody_else(
    always: bool,  # noqa: FBT001 - pytest passes it by name
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sink that raises costs no other job of the batch its rows."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        raising = _RaisingSink()
        raising.always = always
        engine.scheduler.submit(engine.job(["one"], INTERACTIVE, raising))
        good = await submit(engine, ["two"])
        with caplog.at_level(logging.ERROR):
            backend.gate.open()
            await good.done.wait()
    assert good.rows == {0: answer("two")}
    assert [error.reason for error in raising.errors.values()] == [Reason.INTERNAL] * (not always)
    assert len(caplog.records) == 1 + always
    assert all("incident" in record.__dict__ for record in caplog.records)


async def test_outputs_share_a_batch() -> None:
    """Jobs that want different outputs share a batch, and each gets its own."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        positive = await submit(engine, ["text"])
        negative = RecordingSink()
        job = engine.job(["other"], INTERACTIVE, negative)
        job.outputs = (NEGATIVE,)
        engine.scheduler.submit(job)
        backend.gate.open()
        await positive.done.wait()
        await negative.done.wait()
    assert len(backend.batches) == 2
    assert positive.rows == {0: answer("text")}
    assert negative.rows == {0: [-number for number in answer("other")]}


class _Observer:
    """Records every report, then raises if told to."""

    def __init__(self, *, raising: bool = False) -> None:
        self.reports: list[BatchReport] = []
        self._raising = raising

    def batch_finished(self, report: BatchReport) -> None:
        self.reports.append(report)
        if self._raising:
            raise RuntimeError("an observer's fault")


async def test_observers_are_told_of_every_batch() -> None:
    """A report counts sequences, tokens and traces; an observer that raises stops nothing."""
    observer = _Observer()
    backend = FakeBackend()
    with running(backend, observers=[_Observer(raising=True), observer]) as engine:
        await hold(engine, backend)
        trace = object()
        call = Call(WorkClass.INTERACTIVE, trace=trace)
        sinks = [
            await submit(engine, ["abc", "de"], call),
            await submit(engine, ["fghij", "de", "de"]),
        ]
        backend.gate.open()
        for sink in sinks:
            await sink.done.wait()
        broken = await submit(engine, [BROKEN])
        await broken.done.wait()
    first, second, third = sorted(observer.reports, key=lambda one: one.started_ns)
    assert (first.model, first.sequences, first.error) == ("fake", 1, "")
    assert (second.sequences, second.tokens, second.padded_tokens) == (3, 10, 15)
    assert (second.shared, second.shared_tokens) == (2, 4)
    assert set(second.traces) == {trace}
    assert 0 < second.started_ns <= second.finished_ns <= third.started_ns
    assert (third.error, third.failed_sequences) == ("BACKEND_FAILED", 1)


async def test_close_fails_what_is_left() -> None:
    """Closing answers the running batch, fails what is queued, and leaves no thread behind."""
    backend = FakeBackend(lanes=2)
    alone = BatchBudget(tokens=512, sequences=1, overhead_tokens=0)
    with running(backend, budget=alone) as engine:
        backend.gate.close()
        flying = await submit(engine, ["a", "b"])
        backend.gate.wait_for(2)
        waiting = await submit(engine, ["c", "d", "e"])
        closing = threading.Thread(target=engine.scheduler.close)
        closing.start()
        with engine.scheduler._changed:
            assert engine.scheduler._changed.wait_for(lambda: engine.scheduler._closed, WAIT_S)
        backend.gate.open()
        await flying.done.wait()
        await waiting.done.wait()
        closing.join(WAIT_S)
        assert flying.rows == {0: answer("a"), 1: answer("b")}
        assert {error.reason for error in waiting.errors.values()} == {Reason.SHUTTING_DOWN}
        assert len(waiting.errors) == 3
        assert len(backend.batches) == 2
        assert not [one for one in threading.enumerate() if one.name.startswith("lane-fake")]
        assert engine.admission.inputs == 0
        with pytest.raises(ShuttingDownError):
            await submit(engine, ["late"])
        with pytest.raises(ShuttingDownError):
            await engine.pipeline.run(inputs_of(["later"]), INTERACTIVE)


async def test_equal_texts_are_run_once() -> None:
    """Equal texts, of one caller or several, run once, and all get the result."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        sinks = [await submit(engine, ["same", "other", "same"]) for _ in range(3)]
        backend.gate.open()
        for sink in sinks:
            await sink.done.wait()
        assert engine.admission.inputs == 0
    assert sorted(backend.texts) == ["first", "other", "same"]
    for sink in sinks:
        assert sink.rows == {0: answer("same"), 1: answer("other"), 2: answer("same")}


async def test_text_that_runs_is_not_run_again() -> None:
    """A text that equals a running one waits for that result, and takes no lane."""
    backend = FakeBackend()
    with running(backend) as engine:
        first = await hold(engine, backend)
        again = await submit(engine, ["first"])
        cancelled = engine.job(["first"], INTERACTIVE, RecordingSink())
        engine.scheduler.submit(cancelled)
        engine.scheduler.cancel(cancelled)
        assert len(engine.scheduler._dispatcher.queue) == 0
        backend.gate.open()
        await first.done.wait()
        await again.done.wait()
        later = await submit(engine, ["first"])
        await later.done.wait()
    assert again.rows == later.rows == first.rows == {0: answer("first")}
    assert backend.texts == ["first", "first"]


async def test_failure_is_told_to_all_that_are_equal() -> None:
    """All who sent a text that failed get an error, each its own copy."""
    backend = FakeBackend()
    with running(backend) as engine:
        await hold(engine, backend)
        sinks = [await submit(engine, ["bad" + NAN]) for _ in range(2)]
        backend.gate.open()
        for sink in sinks:
            await sink.done.wait()
    assert [sink.errors[0].reason for sink in sinks] == [Reason.NON_FINITE_OUTPUT] * 2
    assert sinks[0].errors[0] is not sinks[1].errors[0]


async def test_a_call_overtakes_bulk_work_that_waits() -> None:
    """A call that comes after bulk work runs before it."""
    backend = FakeBackend()
    with running(backend, budget=BatchBudget(tokens=20, sequences=4, overhead_tokens=0)) as engine:
        await hold(engine, backend)
        bulk = await submit(engine, [f"text{number}" for number in range(16)], Call(WorkClass.BULK))
        call = await submit(engine, ["call"])
        backend.gate.open()
        await call.done.wait()
        await bulk.done.wait()
    assert [batch.texts for batch in backend.batches][1] == ("call",)
    assert sorted(bulk.rows) == list(range(16))


async def test_bulk_leaves_a_lane_free_for_calls() -> None:
    """While calls arrive, bulk work takes all lanes but one, and a call runs at once."""
    backend = FakeBackend(lanes=2)
    alone = BatchBudget(tokens=512, sequences=1, overhead_tokens=0)
    with running(backend, budget=alone) as engine:
        await (await submit(engine, ["a call"])).done.wait()
        backend.gate.close()
        bulk = await submit(engine, ["b1", "b2", "b3"], Call(WorkClass.BULK))
        backend.gate.wait_for(1)
        call = await submit(engine, ["another call"])
        backend.gate.wait_for(2)
        assert [batch.texts[0] for batch in backend.batches] == ["a call", "b1", "another call"]
        backend.gate.open()
        await call.done.wait()
        await bulk.done.wait()
    assert len(bulk.rows) == 3


async def test_bulk_that_gives_way_keeps_its_lanes() -> None:
    """While calls arrive, it is told to give way, and a call runs at once beside all of it."""
    backend = FakeBackend(lanes=2)
    backend.can_give_way = True
    alone = BatchBudget(tokens=512, sequences=1, overhead_tokens=0)
    with running(backend, budget=alone) as engine:
        await (await submit(engine, ["a call"])).done.wait()
        backend.gate.close()
        bulk = await submit(engine, ["b1", "b2", "b3"], Call(WorkClass.BULK))
        backend.gate.wait_for(2)
        calls = [await submit(engine, ["another call"]), await submit(engine, ["waits"])]
        backend.gate.wait_for(3)
        assert {batch.texts[0] for batch in backend.batches[1:]} == {"b1", "b2", "another call"}
        assert backend.gave_way == {"b1", "b2"}
        backend.gate.open()
        for sink in (bulk, *calls):
            await sink.done.wait()
    assert len(bulk.rows) == 3


async def test_a_call_does_not_wait_for_an_equal_text_that_gives_way() -> None:
    """It runs by itself, before the bulk batch has ended; bulk work joins the running text."""
    backend = FakeBackend(lanes=2)
    backend.can_give_way = True
    alone = BatchBudget(tokens=512, sequences=1, overhead_tokens=0)
    with running(backend, budget=alone) as engine:
        await (await submit(engine, ["a call"])).done.wait()
        backend.gate.close()
        bulk = [await submit(engine, ["same"], Call(WorkClass.BULK))]
        backend.gate.wait_for(1)
        bulk.append(await submit(engine, ["same"], Call(WorkClass.BULK)))
        calls = [await submit(engine, ["same"])]
        backend.gate.wait_for(2)
        calls.append(await submit(engine, ["same"]))
        backend.gate.open()
        for sink in (*bulk, *calls):
            await sink.done.wait()
        # Nothing is left that a text could join.
        assert not len(engine.scheduler._running_entries)
    assert [batch.texts for batch in backend.batches] == [("a call",), ("same",), ("same",)]
    assert {sink.rows[0][0] for sink in (*bulk, *calls)} == {answer("same")[0]}


async def test_bulk_leaves_a_lane_free_once_it_cannot_give_way() -> None:
    """The backend's second session may fail to open."""
    backend = FakeBackend(lanes=2)
    backend.can_give_way = True
    alone = BatchBudget(tokens=512, sequences=1, overhead_tokens=0)
    with running(backend, budget=alone) as engine:
        await (await submit(engine, ["a call"])).done.wait()
        backend.can_give_way = False
        backend.gate.close()
        bulk = await submit(engine, ["b1", "b2", "b3"], Call(WorkClass.BULK))
        backend.gate.wait_for(1)
        call = await submit(engine, ["another call"])
        backend.gate.wait_for(2)
        assert {batch.texts[0] for batch in backend.batches[1:]} == {"b1", "another call"}
        backend.gate.open()
        await call.done.wait()
        await bulk.done.wait()
    assert not backend.gave_way


async def test_bulk_takes_every_lane_when_no_calls_come() -> None:
    """Without recent calls, bulk work takes all lanes."""
    backend = FakeBackend(lanes=2)
    alone = BatchBudget(tokens=512, sequences=1, overhead_tokens=0)
    with running(backend, budget=alone) as engine:
        backend.gate.close()
        bulk = await submit(engine, ["b1", "b2", "b3"], Call(WorkClass.BULK))
        backend.gate.wait_for(2)
        assert len(backend.batches) == 2
        backend.gate.open()
        await bulk.done.wait()


async def test_short_job_overtakes_a_long_one_of_its_caller() -> None:
    """A job's sequences are due one after the other, so that a later short job need not wait."""
    backend = FakeBackend()
    with running(backend, budget=BatchBudget(tokens=20, sequences=4, overhead_tokens=0)) as engine:
        await hold(engine, backend)
        engine.admission.drain_rate.add(tokens=20, seconds=20)
        long = await submit(engine, [f"text{number:02}" for number in range(60)])
        # Of another length, so that only the time when it is due brings it forward.
        short = await submit(engine, ["short"])
        backend.gate.open()
        await short.done.wait()
        await long.done.wait()
    (position,) = [
        position for position, batch in enumerate(backend.batches) if "short" in batch.texts
    ]
    assert position <= 10
    assert len(backend.batches) == 22
    assert len(long.rows) == 60


async def test_a_batch_is_of_the_class_that_it_was_made_for() -> None:
    """Equal texts of both classes run in an interactive batch, whichever came first."""
    observer, backend = _Observer(), FakeBackend()
    with running(backend, observers=[observer]) as engine:
        await hold(engine, backend)
        sinks = [
            await submit(engine, ["same"], Call(work_class))
            for work_class in (WorkClass.BULK, WorkClass.INTERACTIVE, WorkClass.BULK)
        ]
        backend.gate.open()
        for sink in sinks:
            await sink.done.wait()
    reports = sorted(observer.reports, key=lambda one: one.started_ns)
    assert [(one.work_class, one.shared) for one in reports] == [
        (WorkClass.INTERACTIVE, 0),
        (WorkClass.INTERACTIVE, 2),
    ]


async def test_bulk_batches_follow_the_speed_of_recent_ones() -> None:
    """A bulk batch that took too long makes bulk batches beside calls small."""
    budget = BatchBudget(tokens=40, sequences=8, overhead_tokens=0)
    with running(FakeBackend(), budget=budget, bulk_batch_s=1e-9) as engine:
        await (await submit(engine, ["text"], Call(WorkClass.BULK))).done.wait()
        async with asyncio.timeout(WAIT_S):
            while not engine.scheduler.budget.shared_tokens:
                await next_turn()
        assert engine.scheduler.budget == replace(budget, shared_tokens=1)


def test_results_for_a_closed_loop_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A run that ends after the event loop was closed is no fault: its results are unwanted."""
    backend = FakeBackend()
    with ExitStack() as resources:

        async def begin() -> None:
            engine = resources.enter_context(running(backend))
            await hold(engine, backend)
            await submit(engine, ["waits"])

        asyncio.run(begin())
        backend.gate.open()
    assert not caplog.records
    assert backend.texts[0] == "first"
