"""The way of a job through one model, from texts to rows of the model's output.

admit -> check the text -> tokenize -> prepare -> schedule -> run -> sink
"""

import asyncio
import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from embedgrpc.engine import errors
from embedgrpc.engine.admission.admission import Admission, estimate_tokens
from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.admission.waiting_line import WaitingLine
from embedgrpc.engine.results.rows import OutputRows, RowCollector
from embedgrpc.engine.scheduling.scheduler import Scheduler
from embedgrpc.engine.tokenizing.jobs import Check, ReadLimit, Tokenization, TokenizeResult
from embedgrpc.engine.tokenizing.texts import TextOrIds
from embedgrpc.engine.tokenizing.threads import TokenizingThreads
from embedgrpc.engine.work import Call, Job, Sink
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.tokenizers.token_sequence import TokenSequence

_logger = logging.getLogger(__name__)

# Makes the sequences to run, or errors, from the tokenized texts. Called on a tokenizing thread.
Prepare = Callable[[list[TokenizeResult]], "list[TokenSequence | errors.EngineError]"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The texts of one job and how to turn them into sequences.

    Attributes:
        texts: The texts as received, or the token ids of some. Work that grows with their length
            is kept off the event loop.
        check: Checks one input; raises an EngineError if it cannot be used.
        sequences: Number of sequences that `prepare` returns.
        prepare: Makes the sequences.
        outputs: Graph outputs to compute.
        size_bytes: Approximate UTF-8 size of all sequences together.
        max_tokens: Maximum tokens of a sequence.
        atomic: Whether one input that cannot be prepared fails the whole job.
        read_limit: How much of each text is tokenized; None for all of it.
        with_places: Whether the tokenized texts have the places of their tokens.
    """

    texts: Sequence[TextOrIds]
    check: Check
    sequences: int
    prepare: Prepare
    outputs: tuple[str, ...]
    size_bytes: int
    max_tokens: int
    atomic: bool
    read_limit: ReadLimit | None = None
    with_places: bool = False

    @property
    def estimated_tokens(self) -> int:
        """The estimated number of tokens of all sequences."""
        return estimate_tokens(self.size_bytes, self.sequences, self.max_tokens)


class _ReadyJobs:
    """Collects the jobs of a slice on each tokenizing thread, so that a batch can hold all of them.

    Args:
        scheduler: Runs them.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._local = threading.local()

    def put(self, job: Job) -> None:
        """Keep a job until `submit`. On a tokenizing thread."""
        self._jobs().append(job)

    def submit(self) -> None:
        """Queue what this thread has put."""
        jobs = self._jobs()
        if not jobs:
            return
        try:
            self._scheduler.submit(*jobs)
        except errors.ShuttingDownError as error:
            self._refuse(jobs, error)
        except Exception as error:  # noqa: BLE001 - the thread must survive, and callers wait
            fault = errors.EngineError.fault()
            # Without its message, which may contain text.
            _logger.error("fault while queueing", extra=fault.log_fields(error))  # noqa: TRY400
            self._refuse(jobs, fault)
        finally:
            jobs.clear()

    def _jobs(self) -> list[Job]:
        jobs: list[Job] = self._local.__dict__.setdefault("jobs", [])
        return jobs

    def _refuse(self, jobs: Sequence[Job], error: errors.EngineError) -> None:
        """Fail what is left of some jobs, which cannot be queued."""
        for job in jobs:
            left = [index for index, one in enumerate(job.sequences) if one is not None]
            self._scheduler.deliver(job, [(left, copy.copy(error))])


class Pipeline:
    """Runs jobs for one model: admission, tokenization, scheduling.

    Args:
        admission: Bounds the work that is accepted.
        tokenizing: The tokenizer threads.
        scheduler: Runs the tokenized sequences.
        locating: Tokenizes with places; None if the model tokenizes on its own.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        tokenizing: TokenizingThreads,
        scheduler: Scheduler,
        locating: TokenizingThreads | None = None,
    ) -> None:
        self._admission = admission
        self._line = WaitingLine(admission)
        self._tokenizing = tokenizing
        self._scheduler = scheduler
        self._locating = locating
        self._ready = _ReadyJobs(scheduler)
        for threads in filter(None, (tokenizing, locating)):
            # Not a method of this object: a closed model is freed without the garbage collector.
            threads.after_slice = self._ready.submit

    async def run(self, inputs: Inputs, call: Call) -> "JobResult":
        """Run a job, and wait until all of its inputs are done.

        Args:
            inputs: What to run. If they are not atomic, inputs may fail one by one.
            call: For whom. Bulk work waits for room, interactive work is refused.

        Raises:
            OverloadedError: There is no room.
            DeadlineExpiredError: The deadline passed.
            EngineError: An input of an atomic job failed; the rest is dropped.
        """
        if call.work_class is WorkClass.INTERACTIVE:
            reservation = self._admission.admit(
                inputs=inputs.sequences,
                tokens=inputs.estimated_tokens,
                remaining_s=call.deadline - time.monotonic(),
                caller=call.caller,
            )
            return await self._gather(inputs, call, reservation)
        left_s = call.deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(left_s, 0) if math.isfinite(left_s) else None):
                reservation = await self._wait_for_room(inputs, call)
        except TimeoutError:
            raise _expired() from None
        return await self._gather(inputs, call, reservation)

    async def probe(self, inputs: Inputs, call: Call) -> OutputRows:
        """Run a health check's input, bypassing admission. Raises as `run` does."""
        result = await self._gather(inputs, call, self._admission.admit_always())
        return result.rows

    async def submit(self, inputs: Inputs, call: Call, sink: Sink) -> "JobHandle":
        """Start a job whose inputs succeed or fail one by one, as soon as there is room."""
        return self._start(inputs, call, sink, await self._wait_for_room(inputs, call))

    async def _wait_for_room(self, inputs: Inputs, call: Call) -> Reservation:
        return await self._line.enter(
            call.work_class,
            inputs=inputs.sequences,
            tokens=inputs.estimated_tokens,
            caller=call.caller,
        )

    async def _gather(self, inputs: Inputs, call: Call, reservation: Reservation) -> "JobResult":
        gathered = _Gathered(inputs.sequences, atomic=inputs.atomic)
        handle = self._start(inputs, call, gathered, reservation)

        def stop(error: errors.OverloadedError) -> None:
            gathered.fail(error)
            # A job of a thousand sequences takes a millisecond.
            asyncio.get_running_loop().call_soon(self._scheduler.cancel, handle.job)

        if call.work_class is WorkClass.INTERACTIVE and not reservation.is_probe:
            reservation.stop = stop
        timer = None
        if math.isfinite(call.deadline):
            left_s = max(call.deadline - time.monotonic(), 0)
            timer = asyncio.get_running_loop().call_later(left_s, gathered.expire)
        try:
            rows = await gathered.rows
        finally:
            if timer is not None:
                timer.cancel()
            # Else the job and this function would hold each other.
            reservation.stop = None
            handle.cancel()
        return JobResult(handle.job, rows, gathered.errors)

    def _start(
        self, inputs: Inputs, call: Call, sink: Sink, reservation: Reservation
    ) -> "JobHandle":
        job = Job(
            call=call,
            outputs=inputs.outputs,
            sink=sink,
            inputs=inputs.sequences,
            reservation=reservation,
        )
        handle = JobHandle(job, self._scheduler)
        whole = range(inputs.sequences)
        threads = self._tokenizing
        if inputs.with_places:
            if self._locating is None:
                raise RuntimeError("the model has no tokenizer that gives places")
            threads = self._locating
        threads.submit(
            Tokenization(
                texts=inputs.texts,
                check=inputs.check,
                work_class=call.work_class,
                caller=call.caller,
                atomic=inputs.atomic,
                read_limit=inputs.read_limit,
                size_bytes=inputs.size_bytes,
                wanted=lambda: not job.cancelled,
                done=lambda results: self._schedule(
                    job, inputs.prepare(results), atomic=inputs.atomic
                ),
                failed=lambda error: self._scheduler.deliver(job, [(whole, error)]),
            )
        )
        return handle

    def _schedule(
        self,
        job: Job,
        prepared: list[TokenSequence | errors.EngineError],
        *,
        atomic: bool,
    ) -> None:
        """Queue the prepared sequences and deliver the failures. On a tokenizing thread."""
        job.times.tokenized_ns = time.time_ns()
        failures = [
            ([index], one)
            for index, one in enumerate(prepared)
            if isinstance(one, errors.EngineError)
        ]
        job.sequences = [None if isinstance(one, errors.EngineError) else one for one in prepared]
        job.reservation.settle(sum(len(one.input_ids) for one in job.sequences if one is not None))
        if failures and atomic:
            (indices, first), *others = failures
            first.add_others([error for _, error in others])
            self._scheduler.deliver(job, [(indices, first)])
            return
        if failures:
            self._scheduler.deliver(job, failures)
        self._ready.put(job)


def _expired() -> errors.DeadlineExpiredError:
    return errors.DeadlineExpiredError("the deadline passed before the answer")


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job that is done.

    Attributes:
        job: The job, for its sequences.
        rows: A row per sequence, in order; those of failed sequences have no meaning.
        errors: Why sequences failed, by index. Empty for an atomic job.
    """

    job: Job
    rows: OutputRows
    errors: Mapping[int, errors.EngineError]

    def succeeded(self) -> tuple[Sequence[int], OutputRows]:
        """Return the indices of the sequences that did not fail, and their rows."""
        indices = range(len(self.job.sequences))
        if not self.errors:
            return indices, self.rows
        kept = [index for index in indices if index not in self.errors]
        return kept, self.rows.keep(kept)


class JobHandle:
    """A job that was started, which can be cancelled.

    Attributes:
        job: The job.
    """

    __slots__ = ("_scheduler", "job")

    def __init__(self, job: Job, scheduler: Scheduler) -> None:
        self.job = job
        self._scheduler = scheduler

    def cancel(self) -> None:
        """Drop what has not run, and release its room. On the event loop."""
        if self.job.reservation.inputs:
            self._scheduler.cancel(self.job)
            self.job.reservation.release_all()


# These blame an input. All others blame the server or the time, and fail the whole job.
_REASONS_OF_INPUTS = frozenset(
    {
        errors.Reason.INVALID_REQUEST,
        errors.Reason.INPUT_TOO_LONG,
        errors.Reason.EMPTY_INPUT,
        errors.Reason.BACKEND_FAILED,
        errors.Reason.NON_FINITE_OUTPUT,
    }
)


class _Gathered:
    """Puts the rows of a job in order.

    Args:
        inputs: How many sequences the job has.
        atomic: Whether the first failure of an input is the job's.
    """

    def __init__(self, inputs: int, *, atomic: bool) -> None:
        self.rows: asyncio.Future[OutputRows] = asyncio.get_running_loop().create_future()
        self.errors: dict[int, errors.EngineError] = {}
        self._atomic = atomic
        self._collector = RowCollector(inputs)

    def succeeded(self, indices: Sequence[int], rows: OutputRows) -> None:
        """Record rows; see `Sink`."""
        self._collector.add(indices, rows)
        self._finish()

    def failed(self, indices: Sequence[int], error: errors.EngineError) -> None:
        """Record a failure; see `Sink`."""
        if self.rows.done():
            return
        if self._atomic or error.reason not in _REASONS_OF_INPUTS:
            error.index = indices[0]
            self.rows.set_exception(error)
            return
        self.errors.update(dict.fromkeys(indices, error))
        self._collector.skip(len(indices))
        self._finish()

    def expire(self) -> None:
        """End the wait because the deadline passed."""
        self.fail(_expired())

    def fail(self, error: errors.EngineError) -> None:
        """End the wait with an error."""
        if not self.rows.done():
            self.rows.set_exception(error)

    def _finish(self) -> None:
        whole = self._collector.whole()
        if whole is not None and not self.rows.done():
            self.rows.set_result(whole)
