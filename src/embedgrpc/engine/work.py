"""The units of work: a call, its jobs, and their sequences; and the sink for results."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.tokenizers.token_sequence import TokenSequence

# Urgency of work without a deadline: it counts as due this long after it arrived, so that calls
# with short deadlines cannot starve it.
_PATIENCE_S = {WorkClass.INTERACTIVE: 1.0, WorkClass.BULK: 60.0}

# The content of a sequence (ids, token types, task, prompt tokens, unattended tokens) and the graph
# outputs wanted of it.
SequenceKey = tuple[bytes, bytes, int, int, int, tuple[str, ...]]


@dataclass(slots=True)
class CallTimes:
    """How long the jobs of a call took, step by step, summed over its jobs. On the event loop.

    Attributes:
        jobs: The jobs that are done.
        tokenize_s: From the arrival of a job until its texts are tokenized.
        queue_s: From then until its first batch begins.
        run_s: From then until its last batch ends.
    """

    jobs: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    run_s: float = 0.0

    def add(self, times: "JobTimes") -> None:
        """Add a job that is done; steps that it did not reach take no time."""
        self.jobs += 1
        tokenized_ns = times.tokenized_ns or times.arrived_ns
        began_ns = times.began_ns or tokenized_ns
        # The clock of batches may be set meanwhile.
        self.tokenize_s += max(tokenized_ns - times.arrived_ns, 0) / 1e9
        self.queue_s += max(began_ns - tokenized_ns, 0) / 1e9
        self.run_s += max(times.ended_ns - began_ns, 0) / 1e9


@dataclass(slots=True)
class JobTimes:
    """When a job passed each step, in nanoseconds of `time.time_ns`; 0 for not yet.

    Attributes:
        arrived_ns: When it was accepted.
        tokenized_ns: When its texts were tokenized.
        began_ns: When the first of its batches began.
        ended_ns: When the last of its batches ended.
        started: Whether its first batch was reported.
    """

    arrived_ns: int
    tokenized_ns: int = 0
    began_ns: int = 0
    ended_ns: int = 0
    started: bool = False

    def ran(self, began_ns: int, ended_ns: int) -> None:
        """Record a batch with sequences of the job."""
        self.began_ns = min(self.began_ns or began_ns, began_ns)
        self.ended_ns = max(self.ended_ns, ended_ns)

    def starts(self) -> bool:
        """Return whether its first batch is to be reported; once."""
        was_started, self.started = self.started, True
        return not was_started


class Meter(Protocol):
    """Counts the tokens that a model read for somebody. Called on the event loop."""

    def spend(self, tokens: int) -> None:
        """Count tokens of sequences that were run."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """The properties that all work of one RPC shares.

    Attributes:
        work_class: Interactive for unary calls, bulk for streams, unless the call says otherwise.
        deadline: In seconds of `time.monotonic`; infinity for none.
        caller: The unit of fairness: callers of one class get equal shares of the machine.
        trace: Linked to the span of each batch; opaque here.
        forwarded: Metadata for a remote backend, such as traceparent.
        meter: Counts its tokens; None where nobody asks.
        times: How long its jobs took.
    """

    work_class: WorkClass
    deadline: float = math.inf
    caller: str = ""
    trace: object | None = None
    forwarded: tuple[tuple[str, str], ...] = ()
    meter: Meter | None = field(default=None, compare=False)
    times: CallTimes = field(default_factory=CallTimes, compare=False)


class Sink(Protocol):
    """Receives the results of one job, each index once. Called on the event loop."""

    def succeeded(self, indices: Sequence[int], rows: OutputRows) -> None:
        """Receive the rows of these inputs."""
        ...

    def failed(self, indices: Sequence[int], error: EngineError) -> None:
        """Receive the reason why these inputs have no result."""
        ...


class Job:
    """Texts that were submitted together and share a sink.

    Attributes:
        call: The RPC it belongs to.
        outputs: Graph outputs to compute.
        sink: Receives the results.
        reservation: The queue room that the job holds.
        sequences: Tokenized inputs by index; None before tokenization, and for inputs that could
            not be prepared.
        queued: Entries in the scheduler's queue. Written under the scheduler's lock.
        cancelled: Whether its results are no longer wanted. Written under the same lock, read
            from any thread.
        times: When it passed each step.
    """

    __slots__ = (
        "call",
        "cancelled",
        "outputs",
        "queued",
        "reservation",
        "sequences",
        "sink",
        "times",
    )

    def __init__(
        self,
        *,
        call: Call,
        outputs: tuple[str, ...],
        sink: Sink,
        inputs: int,
        reservation: Reservation,
    ) -> None:
        self.call = call
        self.outputs = outputs
        self.sink = sink
        self.reservation = reservation
        self.sequences: list[TokenSequence | None] = [None] * inputs
        self.queued: Sequence[QueuedSequence] = ()
        self.cancelled = False
        self.times = JobTimes(time.time_ns())


class QueuedSequence:
    """One sequence of a job in the scheduler's queue.

    Attributes:
        index: The sequence's position in the job.
        tokens: Its length in tokens, special tokens included.
        urgency: When it is due, in seconds of `time.monotonic`. A caller's earliest goes first.
        key: Equal for sequences with equal results.
        gone: Whether it left the queue, for a batch or because it was cancelled. Indexes that
            still hold it skip it.
    """

    __slots__ = ("gone", "index", "job", "key", "sequence", "tokens", "urgency")

    def __init__(self, job: Job, index: int, sequence: TokenSequence, urgency: float) -> None:
        self.job = job
        self.index = index
        self.sequence = sequence
        self.tokens = len(sequence.input_ids)
        self.urgency = urgency
        types = sequence.token_type_ids
        self.key: SequenceKey = (
            sequence.input_ids.tobytes(),
            types.tobytes() if types is not None else b"",
            sequence.task,
            sequence.prompt_tokens,
            sequence.unattended,
            job.outputs,
        )
        self.gone = False

    def is_wanted(self, now: float) -> bool:
        """Return whether the job was neither cancelled nor is past its deadline."""
        return not self.job.cancelled and self.job.call.deadline > now


def due_times(call: Call, lengths: Sequence[int], *, now: float, token_s: float) -> list[float]:
    """Return when each sequence of a job is due.

    They are due one after the other, at the pace at which they can run, so that a short job does
    not wait for all of a long one of the same caller.

    Args:
        call: The call they belong to.
        lengths: Tokens of each sequence, in order.
        now: In seconds of `time.monotonic`.
        token_s: Seconds per token.
    """
    due = now + _PATIENCE_S[call.work_class]
    times = []
    for length in lengths:
        times.append(min(call.deadline, due))
        due += length * token_s
    return times


# One place in a batch: equal sequences, of one job or of several, that run once.
BatchEntry = list[QueuedSequence]
