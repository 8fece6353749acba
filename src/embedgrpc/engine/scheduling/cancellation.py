"""The batches that run, and for whom: a run that nobody waits for any more is ended."""

import math
from collections.abc import Sequence

from embedgrpc.backends.base import Cancellation, RunContext
from embedgrpc.engine.errors import DeadlineExpiredError
from embedgrpc.engine.scheduling.delivery import BatchResult
from embedgrpc.engine.scheduling.isolation import RunResult
from embedgrpc.engine.work import BatchEntry, Job, QueuedSequence


class RunCancellations:
    """What runs, by what ends it. Under the scheduler's lock."""

    def __init__(self) -> None:
        self._entries: dict[Cancellation, Sequence[BatchEntry]] = {}
        self._jobs: dict[Cancellation, set[Job]] = {}

    def begin(self, entries: Sequence[BatchEntry]) -> RunContext:
        """Takes the entries of a batch that is about to run; tells for whom that is.

        The run may take as long as the last of its riders waits. Of their traces it continues
        one: a run has a single parent.
        """
        riders = [rider for entry in entries for rider in entry]
        traced = (rider.job.call.forwarded for rider in riders if rider.job.call.forwarded)
        deadline = max((rider.job.call.deadline for rider in riders), default=math.inf)
        context = RunContext(deadline=deadline, metadata=next(traced, ()))
        self._entries[context.cancellation] = entries
        self._jobs[context.cancellation] = {rider.job for rider in riders}
        return context

    def leave(self, job: Job) -> list[Cancellation]:
        """Takes that a job was cancelled; returns what ends the runs that were for it alone.

        Sequences that joined an entry since the run began are waited for, too.
        """
        return [
            cancellation
            for cancellation, jobs in self._jobs.items()
            if job in jobs
            and all(rider.job.cancelled for entry in self._entries[cancellation] for rider in entry)
        ]

    def end(self, context: RunContext) -> set[Job]:
        """Forgets a batch that was run; returns the jobs that it was begun for."""
        del self._entries[context.cancellation]
        return self._jobs.pop(context.cancellation)


def set_joined_aside(
    results: Sequence[BatchResult], began_for: set[Job], now: float
) -> tuple[list[BatchResult], list[QueuedSequence]]:
    """Finds who joined a run that was ended because others had no more time.

    Only they are to be run again: whoever the run began for had no more time by its own measure,
    and to try again would be to try for ever where a server's measure is another than ours.

    Args:
        results: What became of the run.
        began_for: The jobs that it was begun for.
        now: The time.

    Returns:
        The results without them, and what is to be queued for them.
    """
    final: list[BatchResult] = []
    again: list[QueuedSequence] = []
    for result in results:
        if not isinstance(result.error, DeadlineExpiredError):
            final.append(result)
            continue
        entries: list[BatchEntry] = []
        for entry in result.items:
            joined = [one for one in entry if one.job not in began_for and one.is_wanted(now)]
            again += map(_queue_anew, joined)
            if left := [one for one in entry if one not in joined]:
                entries.append(left)
        final.append(RunResult(entries, None, result.error))
    return final, again


def _queue_anew(gone: QueuedSequence) -> QueuedSequence:
    again = QueuedSequence(gone.job, gone.index, gone.sequence, gone.urgency)
    # So that it leaves the queue with its job.
    gone.job.queued = [*gone.job.queued, again]
    return again
