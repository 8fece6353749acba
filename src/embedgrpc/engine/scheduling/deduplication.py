"""Lets a sequence that equals a running one wait for the same result."""

from collections.abc import Iterable

from embedgrpc.engine.work import BatchEntry, QueuedSequence, SequenceKey


class RunningEntries:
    """The entries of running batches by content. Used under the scheduler's lock."""

    def __init__(self) -> None:
        self._entries: dict[SequenceKey, BatchEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def join(self, queued: QueuedSequence) -> bool:
        """Add a sequence to the running entry that equals it; return whether there is one."""
        entry = self._entries.get(queued.key)
        if entry is None:
            return False
        queued.gone = True
        entry.append(queued)
        return True

    def begin(
        self, entries: Iterable[BatchEntry], now: float
    ) -> tuple[list[BatchEntry], list[BatchEntry]]:
        """Register the entries of a batch that is about to run.

        Returns:
            The entries to run, and those whose deadlines have passed, without cancelled sequences.
        """
        wanted: list[BatchEntry] = []
        late: list[BatchEntry] = []
        for entry in entries:
            if not any(one.is_wanted(now) for one in entry):
                late.append([one for one in entry if not one.job.cancelled])
            else:
                self._entries[entry[0].key] = entry
                wanted.append(entry)
        return wanted, late

    def end(self, entries: Iterable[BatchEntry]) -> None:
        """Forget entries that ran: nothing can join them any more."""
        for entry in entries:
            del self._entries[entry[0].key]
