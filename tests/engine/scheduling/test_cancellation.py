import asyncio
import time
from collections.abc import Mapping

from embedgrpc.backends.base import (
    NO_CONTEXT,
    BackendCancelledError,
    BackendDeadlineError,
    PaddedBatch,
    RunContext,
)
from embedgrpc.engine.errors import DeadlineExpiredError
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.libraries.arrays import FloatArray
from tests.engine.fakes import WAIT_S, Engine, FakeBackend, RecordingSink, answer, running

SOON_S = 60.0
LATER_S = 120.0


class _EndableBackend(FakeBackend):
    """Ends a run as soon as it is cancelled, and fails runs as too late when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[RunContext] = []
        self.late_runs = 0

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        self.contexts.append(context)
        context.cancellation.add_callback(self.gate.open)
        late = len(self.contexts) <= self.late_runs
        answers = super().run(batch, context)
        if context.cancellation.cancelled:
            raise BackendCancelledError("the run was cancelled")
        if late:
            raise BackendDeadlineError("the time is over")
        return answers


def _call(wait_s: float, *forwarded: tuple[str, str]) -> Call:
    return Call(WorkClass.INTERACTIVE, deadline=time.monotonic() + wait_s, forwarded=forwarded)


def _submit(engine: Engine, text: str, call: Call) -> RecordingSink:
    sink = RecordingSink()
    engine.scheduler.submit(engine.job([text], call, sink))
    return sink


async def test_a_run_may_take_as_long_as_the_last_who_waits_for_it() -> None:
    """A run continues the trace of the first of its calls that has one."""
    backend = _EndableBackend()
    with running(backend) as engine:
        backend.gate.close()
        first = _submit(engine, "first", _call(SOON_S))
        await asyncio.to_thread(backend.gate.wait_for, 1)
        calls = [
            _call(SOON_S),
            _call(LATER_S, ("traceparent", "one")),
            _call(SOON_S, ("traceparent", "two")),
        ]
        sinks = [_submit(engine, f"text{n}", call) for n, call in enumerate(calls)]
        backend.gate.open()
        for sink in (first, *sinks):
            await sink.done.wait()
    alone, together = backend.contexts
    assert alone.metadata == ()
    assert together.deadline == calls[1].deadline
    assert together.metadata == (("traceparent", "one"),)


async def test_a_run_that_nobody_waits_for_is_ended() -> None:
    """The lane is free for others at once."""
    backend = _EndableBackend()
    with running(backend) as engine:
        backend.gate.close()
        sink = RecordingSink()
        job = engine.job(["left"], _call(SOON_S), sink)
        engine.scheduler.submit(job)
        await asyncio.to_thread(backend.gate.wait_for, 1)
        engine.scheduler.cancel(job)
        after = _submit(engine, "after", _call(SOON_S))
        await asyncio.wait_for(after.done.wait(), WAIT_S)
    assert backend.contexts[0].cancellation.cancelled
    assert after.rows == {0: answer("after")}


async def test_a_run_that_somebody_joined_goes_on() -> None:
    """If the caller a run began for leaves, an equal text sent since still gets the result."""
    backend = _EndableBackend()
    with running(backend) as engine:
        backend.gate.close()
        job = engine.job(["shared"], _call(SOON_S), RecordingSink())
        engine.scheduler.submit(job)
        await asyncio.to_thread(backend.gate.wait_for, 1)
        joined = _submit(engine, "shared", _call(SOON_S))
        engine.scheduler.cancel(job)
        assert not backend.contexts[0].cancellation.cancelled
        backend.gate.open()
        await asyncio.wait_for(joined.done.wait(), WAIT_S)
    assert joined.rows == {0: answer("shared")}
    assert backend.texts == ["shared"]


async def test_who_has_time_left_is_run_again() -> None:
    """A run that ended at its first caller's deadline costs no other caller the result."""
    backend = _EndableBackend()
    backend.late_runs = 1
    with running(backend) as engine:
        backend.gate.close()
        hasty = _submit(engine, "shared", _call(0.05))
        await asyncio.to_thread(backend.gate.wait_for, 1)
        patient = _submit(engine, "shared", _call(SOON_S))
        deadline = backend.contexts[0].deadline
        # Only time makes a deadline pass.
        await asyncio.sleep(max(deadline - time.monotonic(), 0))
        backend.gate.open()
        await asyncio.wait_for(patient.done.wait(), WAIT_S)
        await asyncio.wait_for(hasty.done.wait(), WAIT_S)
        assert engine.admission.ledger.is_empty
    assert patient.rows == {0: answer("shared")}
    assert isinstance(hasty.errors[0], DeadlineExpiredError)
    assert backend.texts == ["shared"] * 2
    assert backend.contexts[-1].deadline > deadline


async def test_what_is_late_by_another_measure_is_not_run_again() -> None:
    """A server that gives up before the caller does is not asked again forever."""
    backend = _EndableBackend()
    backend.late_runs = 2
    with running(backend) as engine:
        sink = _submit(engine, "alone", _call(SOON_S))
        await asyncio.wait_for(sink.done.wait(), WAIT_S)
        assert engine.admission.ledger.is_empty
    assert isinstance(sink.errors[0], DeadlineExpiredError)
    assert backend.texts == ["alone"]
