"""The batches that run, and for whom: a run that nobody waits for any more is ended."""

import math
from collections.abc import Sequence

from embedgrpc.backends.base import Cancellation, RunContext
from embedgrpc.engine.errors import DeadlineExpiredError
from embedgrpc.engine.scheduling.delivery import Answer
from embedgrpc.engine.scheduling.isolation import Outcome
from embedgrpc.engine.work import Job, QueuedSequence, Row


class RunningBatches:
    """What runs, by what ends it. Under the scheduler's lock."""

    def __init__(self) -> None:
        self._rows: dict[Cancellation, Sequence[Row]] = {}
        self._jobs: dict[Cancellation, set[Job]] = {}

    def begin(self, rows: Sequence[Row]) -> RunContext:
        """Takes the rows of a batch that is about to run; tells for whom that is.

        The run may take as long as the last of its riders waits. Of their traces it continues
        one: a run has a single parent.
        """
        riders = [rider for row in rows for rider in row]
        traced = (rider.job.call.forwarded for rider in riders if rider.job.call.forwarded)
        deadline = max((rider.job.call.deadline for rider in riders), default=math.inf)
        context = RunContext(deadline=deadline, metadata=next(traced, ()))
        self._rows[context.cancellation] = rows
        self._jobs[context.cancellation] = {rider.job for rider in riders}
        return context

    def leave(self, job: Job) -> list[Cancellation]:
        """Takes that a job was cancelled; returns what ends the runs that were for it alone.

        Sequences that joined a row since the run began are waited for, too.
        """
        return [
            cancellation
            for cancellation, jobs in self._jobs.items()
            if job in jobs
            and all(rider.job.cancelled for row in self._rows[cancellation] for rider in row)
        ]

    def end(self, context: RunContext) -> set[Job]:
        """Forgets a batch that was run; returns the jobs that it was begun for."""
        del self._rows[context.cancellation]
        return self._jobs.pop(context.cancellation)


def set_joined_aside(
    outcomes: Sequence[Outcome[Row, Answer]], began_for: set[Job], now: float
) -> tuple[list[Outcome[Row, Answer]], list[QueuedSequence]]:
    """Finds who joined a run that was ended because others had no more time.

    Only they are to be run again: whoever the run began for had no more time by its own measure,
    and to try again would be to try for ever where a server's measure is another than ours.

    Args:
        outcomes: What became of the run.
        began_for: The jobs that it was begun for.
        now: The time.

    Returns:
        The outcomes without them, and what is to be queued for them.
    """
    final: list[Outcome[Row, Answer]] = []
    again: list[QueuedSequence] = []
    for outcome in outcomes:
        if not isinstance(outcome.error, DeadlineExpiredError):
            final.append(outcome)
            continue
        rows: list[Row] = []
        for row in outcome.rows:
            joined = [one for one in row if one.job not in began_for and one.is_wanted(now)]
            again += map(_queue_anew, joined)
            if left := [one for one in row if one not in joined]:
                rows.append(left)
        final.append(Outcome(rows, None, outcome.error))
    return final, again


def _queue_anew(gone: QueuedSequence) -> QueuedSequence:
    again = QueuedSequence(gone.job, gone.index, gone.sequence, gone.urgency)
    # So that it leaves the queue with its job.
    gone.job.queued = [*gone.job.queued, again]
    return again
