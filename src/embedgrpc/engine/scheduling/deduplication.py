"""What runs now, by what it is made of: more of the same waits for the same answer."""

from collections.abc import Iterable

from embedgrpc.engine.work import BatchEntry, QueuedSequence, SequenceKey


class RunningEntries:
    """The entries of the batches that run. Under the scheduler's lock."""

    def __init__(self) -> None:
        self._entries: dict[SequenceKey, BatchEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def join(self, queued: QueuedSequence) -> bool:
        """Lets a sequence wait for its equal's answer; tells whether there is one."""
        entry = self._entries.get(queued.key)
        if entry is None:
            return False
        queued.gone = True
        entry.append(queued)
        return True

    def begin(
        self, entries: Iterable[BatchEntry], now: float
    ) -> tuple[list[BatchEntry], list[BatchEntry]]:
        """Takes the entries of a batch that is about to run.

        Returns:
            Those that must be run, and those for which it is too late, without those that were
            cancelled.
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
        """Forgets entries that were run: from here on nothing joins them."""
        for entry in entries:
            del self._entries[entry[0].key]
