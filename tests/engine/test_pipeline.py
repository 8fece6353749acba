import asyncio
import logging
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from embedgrpc.engine.errors import (
    BackendFailedError,
    DeadlineExpiredError,
    EngineError,
    InputTooLongError,
    NonFiniteOutputError,
    OverloadedError,
    Reason,
)
from embedgrpc.engine.pipeline import JobHandle
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.reports import BatchReport
from embedgrpc.engine.tokenizing.jobs import TokenizeResult
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from tests.engine.fakes import (
    BROKEN,
    NAN,
    OUTPUT,
    CharacterTokenizer,
    Engine,
    FakeBackend,
    RecordingSink,
    answer,
    build_all,
    inputs_of,
    next_turn,
    running,
)

INTERACTIVE = Call(WorkClass.INTERACTIVE)
BULK = Call(WorkClass.BULK)
KINDS = ("answered", "cancelled", "NaN", "broken", "refused")


def refuse_long(outcomes: list[TokenizeResult]) -> list[TokenSequence | EngineError]:
    """Return sequences for texts of at most five characters, and errors for the others."""
    return [
        one
        if isinstance(one, EngineError) or len(one.input_ids) <= 5
        else InputTooLongError("too long")
        for one in build_all(outcomes)
    ]


async def hold(engine: Engine, backend: FakeBackend) -> "asyncio.Task[object]":
    """Keep the only lane busy, so that everything that follows is queued."""
    backend.gate.close()
    task: asyncio.Task[object] = asyncio.create_task(
        engine.pipeline.run(inputs_of(["first"]), INTERACTIVE)
    )
    await next_turn()
    backend.gate.wait_for(1)
    return task


class _After:
    """Sets an event of the event loop once this many batches have run."""

    def __init__(self, batches: int) -> None:
        self.reached = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._left = batches
        self._lock = threading.Lock()

    def batch_finished(self, report: BatchReport) -> None:
        del report
        with self._lock:
            self._left -= 1
            if not self._left:
                self._loop.call_soon_threadsafe(self.reached.set)


@dataclass
class _Part:
    """One call's texts and its work class."""

    texts: list[str]
    task: "asyncio.Task[list[list[float]]] | None" = None
    sink: RecordingSink | None = None
    cancelled: bool = False


def make_parts(count: int, source: random.Random) -> list[_Part]:
    """Return distinct texts of 1 to 80 characters, a few of which make the backend fail."""
    parts: list[_Part] = []
    made = 0
    while made < count:
        size = min(source.randint(1, 25), count - made)
        texts = []
        for number in range(made, made + size):
            odd = source.random()
            mark = NAN if odd < 0.004 else BROKEN if odd < 0.006 else "."
            texts.append(f"{number}{mark}" + "x" * source.choice([0, 1, 5, 20, 74]))
        made += size
        parts.append(_Part(texts))
    return parts


class _Trial:
    """Runs all parts through an engine, and cancels some while others are in flight."""

    def __init__(self, engine: Engine, parts: list[_Part], source: random.Random) -> None:
        self._engine = engine
        self._parts = parts
        self._source = source
        self._streams: list[asyncio.Task[JobHandle]] = []

    def start(self) -> None:
        """Start every other part as a unary call, the rest as bulk work."""
        for position, part in enumerate(self._parts):
            if position % 2:
                part.task = asyncio.create_task(self._call(part.texts))
            else:
                part.sink = RecordingSink(expected=len(part.texts))
                inputs = inputs_of(part.texts, atomic=False)
                submitted = self._engine.pipeline.submit(inputs, BULK, part.sink)
                self._streams.append(asyncio.create_task(submitted))

    def cancel_some(self) -> None:
        """Cancel a few calls and a stream, at whatever stage they are."""
        for part in self._source.sample(self._parts, 4):
            if part.task and not part.task.done():
                part.task.cancel()
                part.cancelled = True
        stream = self._source.choice(self._streams)
        if stream.done():
            sink = stream.result().job.sink
            (part,) = [one for one in self._parts if one.sink is sink]
            if part.sink and not part.sink.done.is_set():
                stream.result().cancel()
                part.cancelled = True

    async def finish(self) -> None:
        """Wait until every part that was not cancelled is answered."""
        await asyncio.gather(*self._streams)
        for part in self._parts:
            if part.task:
                await asyncio.wait([part.task])
            elif part.sink and not part.cancelled:
                await part.sink.done.wait()

    async def _call(self, texts: list[str]) -> list[list[float]]:
        result = await self._engine.pipeline.run(inputs_of(texts), INTERACTIVE)
        answers: list[list[float]] = result.rows.by_sequence[OUTPUT].tolist()
        return answers


@pytest.mark.parametrize("lanes", [1, 3])
async def test_every_answer_belongs_to_its_own_text(
    lanes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In 5,000 texts with cancels and failures, no results are mixed up and only bad texts fail."""
    caplog.set_level(logging.CRITICAL)
    source = random.Random(lanes)  # noqa: S311 - no secret
    parts = make_parts(5000, source)
    budget = BatchBudget(tokens=400, sequences=30, overhead_tokens=16)
    backend = FakeBackend(lanes=lanes)
    steps = [_After(batches) for batches in range(5, 105, 5)]
    with running(backend, budget=budget, observers=steps, max_inputs=2000) as engine:
        trial = _Trial(engine, parts, source)
        backend.gate.close()
        trial.start()
        await next_turn()
        backend.gate.open()
        for step in steps:
            await step.reached.wait()
            trial.cancel_some()
        await trial.finish()
        assert engine.admission.inputs == 0
        assert engine.admission.ledger.is_empty
        assert len(engine.scheduler._dispatcher.queue) == 0

    for batch in backend.batches:
        rows, columns = batch.shape
        assert rows <= budget.sequences
        assert rows == 1 or rows * columns <= budget.tokens
    runs = Counter(backend.texts)
    # A good text runs again only to find the bad one beside it.
    assert sum(runs.values()) < 1.5 * len(runs)
    outcomes = Counter(
        check_stream(part, part.sink, runs) if part.sink else check_call(part, runs)
        for part in parts
    )
    assert min(outcomes[kind] for kind in KINDS) > 0
    assert outcomes["answered"] > len(parts) / 2


def check_call(part: _Part, runs: Counter[str]) -> str:
    """Compare a unary call's result with what ran, and return its name."""
    assert part.task
    if part.task.cancelled():
        assert part.cancelled
        return "cancelled"
    error = part.task.exception()
    if error is None:
        assert part.task.result() == [answer(text) for text in part.texts]
        assert all(runs[text] for text in part.texts)
        return "answered"
    if isinstance(error, OverloadedError):
        assert not any(runs[text] for text in part.texts)
        return "refused"
    if isinstance(error, NonFiniteOutputError):
        assert NAN in part.texts[error.index]
        return "NaN"
    assert isinstance(error, BackendFailedError)
    assert BROKEN in part.texts[error.index]
    return "broken"


def check_stream(part: _Part, sink: RecordingSink, runs: Counter[str]) -> str:
    """Compare what a sink received with what ran, and return its name."""
    assert not sink.rows.keys() & sink.errors.keys()
    assert sink.answers == len(sink.rows) + len(sink.errors)
    for index, row in sink.rows.items():
        assert row == answer(part.texts[index])
        assert runs[part.texts[index]]
    for index, error in sink.errors.items():
        assert (
            NAN in part.texts[index]
            if error.reason is Reason.NON_FINITE_OUTPUT
            else BROKEN in part.texts[index]
        )
    if part.cancelled:
        return "cancelled"
    assert sink.answers == len(part.texts)
    return "broken" if sink.errors else "answered"


async def test_cancelled_call_is_not_run() -> None:
    """A caller that leaves while its texts are queued is left out, and its room is free at once."""
    backend = FakeBackend()
    with running(backend) as engine:
        first = await hold(engine, backend)
        gone = asyncio.create_task(engine.pipeline.run(inputs_of(["gone"] * 3), INTERACTIVE))
        kept = asyncio.create_task(engine.pipeline.run(inputs_of(["kept"]), INTERACTIVE))
        await next_turn()
        engine.wait_until_tokenized()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert engine.admission.inputs == 2
        assert len(engine.scheduler._dispatcher.queue) == 1
        backend.gate.open()
        await asyncio.gather(first, kept)
    assert backend.texts == ["first", "kept"]


async def test_cancelled_while_it_is_tokenized() -> None:
    """Work that is cancelled between tokenizing and queueing does not run either."""
    tokenizer, backend = CharacterTokenizer(), FakeBackend()
    with running(backend, tokenizer=tokenizer) as engine:
        tokenizer.gate.close()
        gone = asyncio.create_task(engine.pipeline.run(inputs_of(["gone"]), INTERACTIVE))
        await next_turn()
        tokenizer.gate.wait_for(1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        tokenizer.gate.open()
        await engine.pipeline.run(inputs_of(["after"]), INTERACTIVE)
        assert engine.admission.ledger.is_empty
    assert backend.texts == ["after"]


async def test_cancelled_stream_is_not_answered() -> None:
    """A job that is cancelled while its batch runs gets no result and holds no room."""
    backend = FakeBackend()
    with running(backend) as engine:
        backend.gate.close()
        sink = RecordingSink()
        started = await engine.pipeline.submit(inputs_of(["text"], atomic=False), BULK, sink)
        backend.gate.wait_for(1)
        started.cancel()
        started.cancel()
        assert engine.admission.inputs == 0
        backend.gate.open()
        await engine.pipeline.run(inputs_of(["after"]), INTERACTIVE)
        assert engine.admission.inputs == 0
    assert (sink.rows, sink.errors) == ({}, {})


async def test_atomic_job_runs_nothing_when_one_text_fails() -> None:
    """A call with one text that cannot be prepared runs no batch."""
    backend = FakeBackend()
    with running(backend) as engine:
        texts = inputs_of(["one", "two", "too long", "three"], prepare=refuse_long)
        with pytest.raises(InputTooLongError) as refused:
            await engine.pipeline.run(texts, INTERACTIVE)
        assert refused.value.index == 2
        assert engine.admission.inputs == 0
        assert len(engine.scheduler._dispatcher.queue) == 0
    assert backend.batches == []


async def test_other_texts_of_a_stream_are_run() -> None:
    """A text of a stream that cannot be prepared fails alone."""
    backend = FakeBackend()
    with running(backend) as engine:
        sink = RecordingSink(expected=4)
        texts = ["one", "two", "too long", "three"]
        job = inputs_of(texts, prepare=refuse_long, atomic=False)
        await engine.pipeline.submit(job, BULK, sink)
        await sink.done.wait()
        assert engine.admission.ledger.is_empty
    assert sink.rows == {index: answer(texts[index]) for index in (0, 1, 3)}
    assert sink.errors[2].reason is Reason.INPUT_TOO_LONG


async def test_fault_while_preparing_is_told() -> None:
    """A fault between tokenizing and queueing fails the call, not the thread."""

    def fail(outcomes: list[TokenizeResult]) -> list[TokenSequence | EngineError]:
        raise ZeroDivisionError(len(outcomes))

    with running(FakeBackend()) as engine:
        with pytest.raises(EngineError) as failed:
            await engine.pipeline.run(inputs_of(["text"], prepare=fail), INTERACTIVE)
        assert failed.value.reason is Reason.INTERNAL
        await engine.pipeline.run(inputs_of(["after"]), INTERACTIVE)
        assert engine.admission.inputs == 0


async def test_fault_of_the_tokenizer_is_told() -> None:
    """A text that the tokenizer cannot take fails its call and releases its room."""
    tokenizer = CharacterTokenizer()
    tokenizer.poison = {"secret"}
    with running(FakeBackend(), tokenizer=tokenizer) as engine:
        with pytest.raises(EngineError) as failed:
            await engine.pipeline.run(inputs_of(["fine", "secret"]), INTERACTIVE)
        assert failed.value.reason is Reason.INTERNAL
        assert "secret" not in failed.value.message
        assert engine.admission.inputs == 0


async def test_deadline_ends_the_wait() -> None:
    """A call whose deadline passes while its batch runs fails, and its room is free."""
    backend = FakeBackend()
    with running(backend) as engine:
        backend.gate.close()
        call = Call(WorkClass.INTERACTIVE, deadline=time.monotonic() + 0.05)
        with pytest.raises(DeadlineExpiredError):
            await engine.pipeline.run(inputs_of(["text"]), call)
        assert engine.admission.inputs == 0


async def test_probe_passes_a_full_queue() -> None:
    """A health check runs although interactive work is being refused."""
    backend = FakeBackend()
    with running(backend, max_inputs=1) as engine:
        first = await hold(engine, backend)
        with pytest.raises(OverloadedError):
            await engine.pipeline.run(inputs_of(["text"]), INTERACTIVE)
        probe = asyncio.create_task(engine.pipeline.probe(inputs_of(["probe"]), INTERACTIVE))
        await next_turn()
        backend.gate.open()
        assert (await probe).by_sequence[OUTPUT].tolist() == [answer("probe")]
        await first


async def test_first_failure_is_the_calls() -> None:
    """A call with several bad texts fails with one of them and its position."""
    with running(FakeBackend()) as engine:
        texts = ["good", "bad" + NAN, "worse" + NAN]
        with pytest.raises(NonFiniteOutputError) as failed:
            await engine.pipeline.run(inputs_of(texts), INTERACTIVE)
        assert failed.value.index in (1, 2)


async def test_the_times_of_a_call_are_those_of_its_steps() -> None:
    """A call that waits behind another one spent that time in the queue, and no longer in all."""
    backend = FakeBackend()
    with running(backend) as engine:
        first = await hold(engine, backend)
        call = Call(WorkClass.INTERACTIVE)
        began = time.monotonic()
        second = asyncio.create_task(engine.pipeline.run(inputs_of(["a", "bc"]), call))
        await next_turn()
        held_from = time.monotonic()
        while time.monotonic() - held_from < 0.05:
            await next_turn()
        backend.gate.open()
        await asyncio.gather(first, second)
        took_s = time.monotonic() - began
    times = call.times
    assert times.jobs == 1
    assert times.queue_s + times.tokenize_s >= 0.05
    assert times.run_s > 0
    assert times.tokenize_s + times.queue_s + times.run_s <= took_s + 0.01
