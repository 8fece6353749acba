"""The units of work: a call, its jobs, their sequences, and where results go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from embedgrpc.engine.admission import Reservation
from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.rows import Rows
from embedgrpc.models.tokenizer import TokenSequence


class WorkClass(IntEnum):
    """How soon somebody needs the answer."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(frozen=True, slots=True)
class Call:
    """What holds for all the work of one RPC.

    Attributes:
        work_class: Interactive for unary calls, bulk for streams.
        deadline: On the clock of `time.monotonic`, in seconds; infinity for none.
        trace: What the batch's span is linked to; opaque here.
    """

    work_class: WorkClass
    deadline: float = math.inf
    trace: object | None = None


class Sink(Protocol):
    """Takes the results of one job, on the event loop, each index once."""

    def succeeded(self, indices: Sequence[int], rows: Rows) -> None:
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
        urgency: When it should have been run, on the clock of `time.monotonic`; the batch is
            built around the sequence with the least.
        gone: It was taken into a batch or dropped; a queue that still meets it passes over it.
    """

    __slots__ = ("gone", "index", "job", "sequence", "urgency")

    def __init__(self, job: Job, index: int, sequence: TokenSequence, urgency: float) -> None:
        self.job = job
        self.index = index
        self.sequence = sequence
        self.urgency = urgency
        self.gone = False

    @property
    def tokens(self) -> int:
        """How many tokens it has, special tokens included."""
        return len(self.sequence.input_ids)
