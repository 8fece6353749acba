"""The units of work: a call, its jobs, their sequences, and where results go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.tokenizers.tokenizer import TokenSequence

# A sequence without a deadline is as urgent as one that has this much time left: so nothing
# waits for ever behind calls with short deadlines.
_PATIENCE_S = {WorkClass.INTERACTIVE: 1.0, WorkClass.BULK: 60.0}

# What a sequence is made of, and which of the graph's outputs are wanted of it.
SequenceKey = tuple[bytes, bytes, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Call:
    """What holds for all the work of one RPC.

    Attributes:
        work_class: Interactive for unary calls, bulk for streams, unless the call says otherwise.
        deadline: On the clock of `time.monotonic`, in seconds; infinity for none.
        caller: Who shares the machine fairly with the other callers of the same class.
        trace: What the batch's span is linked to; opaque here.
        forwarded: Keys and values for whatever runs the model elsewhere, such as traceparent.
    """

    work_class: WorkClass
    deadline: float = math.inf
    caller: str = ""
    trace: object | None = None
    forwarded: tuple[tuple[str, str], ...] = ()


class Sink(Protocol):
    """Takes the results of one job, on the event loop, each index once."""

    def succeeded(self, indices: Sequence[int], rows: OutputRows) -> None:
        """Takes the rows of these inputs."""
        ...

    def failed(self, indices: Sequence[int], error: EngineError) -> None:
        """Takes the reason why these inputs have no result."""
        ...


class Job:
    """Texts that were submitted together and share a sink.

    Attributes:
        call: The RPC it belongs to.
        outputs: The graph's outputs that are wanted.
        sink: Where results go.
        reservation: The room it takes up.
        sequences: Its tokenized inputs by index; None before that, and for an input that
            could not be prepared.
        queued: What of it stands in the scheduler's queue. Changed under the scheduler's lock.
        cancelled: Nobody waits for it any more. Changed likewise, read anywhere.
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
    """One sequence of a job while it waits for its batch.

    Attributes:
        job: The job.
        index: Its place in the job.
        sequence: The tokens.
        tokens: How many there are, special tokens included.
        urgency: When it should have been run, on the clock of `time.monotonic`; of a caller's
            sequences the one with the least goes first.
        key: Equal for sequences of which the model says the same.
        gone: It was taken into a batch or dropped; a queue that still meets it passes over it.
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
            job.outputs,
        )
        self.gone = False

    def is_wanted(self, now: float) -> bool:
        """Tells whether somebody still waits for it, and still can."""
        return not self.job.cancelled and self.job.call.deadline > now


def due_times(call: Call, lengths: Sequence[int], *, now: float, token_s: float) -> list[float]:
    """Tells when the sequences of a job should have been run.

    They are due one after the other, at the pace at which they can be run: so a short job of the
    same caller does not wait for the whole of a long one.

    Args:
        call: The call that they belong to.
        lengths: How many tokens each has, in order.
        now: The time, in seconds.
        token_s: Seconds that a token takes.
    """
    due = now + _PATIENCE_S[call.work_class]
    times = []
    for length in lengths:
        times.append(min(call.deadline, due))
        due += length * token_s
    return times


# One place in a batch: equal sequences, of one job or of several, which are run once.
BatchEntry = list[QueuedSequence]
