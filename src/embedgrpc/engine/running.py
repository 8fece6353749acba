"""The batches that run, and for whom: a run that nobody waits for any more is ended."""

import math
from collections.abc import Sequence

from embedgrpc.backends.base import Cancellation, RunContext
from embedgrpc.engine.work import Job, Row


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
