"""The progress of long work. A terminal displays it; by default nothing does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with what is being done, and with how many bytes of how many are done.
Display = Callable[[str, int, int], None]


class _Reporter:
    """Passes progress to a display."""

    def __init__(self) -> None:
        self.display: Display | None = None
        self._what = ""
        self._done = self._total = 0

    def report(self, what: str, done: int, total: int) -> None:
        """Report that so many bytes of the total are done. At the total, the work has ended."""
        if self.display is not None and total > 0:
            self.display(what, min(done, total), total)

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[None]:
        """Report what `advance` counts as progress of one task, until the `with` block ends."""
        self._what, self._done, self._total = what, 0, total
        try:
            yield
        finally:
            self.report(what, total, total)
            self._total = 0

    def advance(self, count: int) -> None:
        """Count bytes of the current task, if there is one."""
        self._done += count
        # The end of the block reports the last byte.
        self.report(self._what, min(self._done, self._total - 1), self._total)


reporter = _Reporter()
