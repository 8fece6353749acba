"""Cancels runs whose results are no longer wanted."""

import math
from collections.abc import Sequence

from embedgrpc.backends.base import Cancellation, RunContext
from embedgrpc.engine.errors import DeadlineExpiredError
from embedgrpc.engine.scheduling.delivery import BatchResult
from embedgrpc.engine.scheduling.isolation import RunResult
from embedgrpc.engine.work import BatchEntry, Job, QueuedSequence


class RunCancellations:
    """The running batches by their cancellations. Used under the scheduler's lock."""

    def __init__(self) -> None:
        self._entries: dict[Cancellation, Sequence[BatchEntry]] = {}
        self._jobs: dict[Cancellation, set[Job]] = {}

    def begin(self, entries: Sequence[BatchEntry], *, gives_way: bool) -> RunContext:
        """Register a batch that is about to run, and return its context.

        Its deadline is the latest of its sequences'. It continues the trace of one of its calls,
        because a run has a single parent.
        """
        calls = [queued.job.call for entry in entries for queued in entry]
        context = RunContext(
            deadline=max((call.deadline for call in calls), default=math.inf),
            metadata=next((call.forwarded for call in calls if call.forwarded), ()),
            gives_way=gives_way,
        )
        self._entries[context.cancellation] = entries
        self._jobs[context.cancellation] = {queued.job for entry in entries for queued in entry}
        return context

    def abandoned_by(self, job: Job) -> list[Cancellation]:
        """Return what cancels the runs that were only for this job, which was cancelled.

        Runs that equal sequences have joined since they began go on.
        """
        return [
            cancellation
            for cancellation, jobs in self._jobs.items()
            if job in jobs
            and all(one.job.cancelled for entry in self._entries[cancellation] for one in entry)
        ]

    def end(self, context: RunContext) -> set[Job]:
        """Forget a batch that ran, and return the jobs it began for."""
        del self._entries[context.cancellation]
        return self._jobs.pop(context.cancellation)


def split_joined(
    results: Sequence[BatchResult], began_for: set[Job], now: float
) -> tuple[list[BatchResult], list[QueuedSequence]]:
    """Find sequences that joined a run which then ended at the deadline of the others.

    This happens with Triton only, whose runs end at a deadline or when cancelled. Without it, a
    call with time left would fail because of an equal text of a call without. Only those that
    joined run again: retrying the others could loop forever if the server's clock disagrees.

    Args:
        results: The results of the run.
        began_for: The jobs that the run began for.
        now: The time.

    Returns:
        The results without them, and new queue entries for them.
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
    # So that cancelling the job removes it from the queue.
    gone.job.queued = [*gone.job.queued, again]
    return again
