"""The units of work: a call, its jobs, and their sequences; and the sink for results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.tokenizers.tokenizer import TokenSequence

# Urgency of work without a deadline: it counts as due this long after it arrived, so that calls
# with short deadlines cannot starve it.
_PATIENCE_S = {WorkClass.INTERACTIVE: 1.0, WorkClass.BULK: 60.0}

# The content of a sequence (ids, token types, task, prompt tokens) and the graph outputs wanted of
# it.
SequenceKey = tuple[bytes, bytes, int, int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Call:
    """The properties that all work of one RPC shares.

    Attributes:
        work_class: Interactive for unary calls, bulk for streams, unless the call says otherwise.
        deadline: In seconds of `time.monotonic`; infinity for none.
        caller: The unit of fairness: callers of one class get equal shares of the machine.
        trace: Linked to the span of each batch; opaque here.
        forwarded: Metadata for a remote backend, such as traceparent.
    """

    work_class: WorkClass
    deadline: float = math.inf
    caller: str = ""
    trace: object | None = None
    forwarded: tuple[tuple[str, str], ...] = ()


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
    """

    __slots__ = ("call", "cancelled", "outputs", "queued", "reservation", "sequences", "sink")

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
