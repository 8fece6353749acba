"""What runs now, by what it is made of: more of the same waits for the same answer."""

from collections.abc import Iterable

from embedgrpc.engine.work import QueuedSequence, Row, SequenceKey


class InFlight:
    """The rows of the batches that run. Under the scheduler's lock."""

    def __init__(self) -> None:
        self._rows: dict[SequenceKey, Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, queued: QueuedSequence) -> bool:
        """Lets a sequence wait for its equal's answer; tells whether there is one."""
        row = self._rows.get(queued.key)
        if row is None:
            return False
        queued.gone = True
        row.append(queued)
        return True

    def begin(self, rows: Iterable[Row], now: float) -> tuple[list[Row], list[Row]]:
        """Takes the rows of a batch that is about to run.

        Returns:
            Those that must be run, and those for which it is too late, without the riders who
            left by themselves. Rows that equal one in flight have joined it: their batch was laid
            out ahead, and the equal came and was begun since.
        """
        wanted: list[Row] = []
        late: list[Row] = []
        for row in rows:
            if not any(one.is_wanted(now) for one in row):
                late.append([one for one in row if not one.job.cancelled])
            elif running := self._rows.get(row[0].key):
                running += row
            else:
                self._rows[row[0].key] = row
                wanted.append(row)
        return wanted, late

    def end(self, rows: Iterable[Row]) -> None:
        """Forgets rows that were run: from here on nothing joins them."""
        for row in rows:
            del self._rows[row[0].key]
