"""Lets a sequence that equals a running one wait for the same result."""

from collections.abc import Iterable

from embedgrpc.engine.work import BatchEntry, QueuedSequence, SequenceKey
from embedgrpc.engine.work_class import WorkClass


class RunningEntries:
    """The entries of running batches by content. Used under the scheduler's lock."""

    def __init__(self) -> None:
        self._entries: dict[SequenceKey, BatchEntry] = {}
        # Those whose batch gives way to interactive work, which does not wait for them.
        self._giving_way: set[SequenceKey] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def join(self, queued: QueuedSequence) -> bool:
        """Add a sequence to the running entry that equals it; return whether there is one."""
        entry = self._entries.get(queued.key)
        if entry is None:
            return False
        if queued.key in self._giving_way and queued.job.call.work_class is WorkClass.INTERACTIVE:
            return False
        queued.gone = True
        entry.append(queued)
        return True

    def begin(
        self, entries: Iterable[BatchEntry], now: float, *, gives_way: bool = False
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
                # Instead of an equal one that gives way.
                self._entries[entry[0].key] = entry
                self._giving_way.discard(entry[0].key)
                if gives_way:
                    self._giving_way.add(entry[0].key)
                wanted.append(entry)
        return wanted, late

    def end(self, entries: Iterable[BatchEntry]) -> None:
        """Forget entries that ran: nothing can join them any more."""
        for entry in entries:
            key = entry[0].key
            if self._entries.get(key) is entry:
                del self._entries[key]
                self._giving_way.discard(key)
