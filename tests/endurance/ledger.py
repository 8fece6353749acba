"""The texts that clients wait for, and the rows that ran although no client waited."""

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from tests.endurance.findings import Findings

# The number of remembered texts without a waiting client.
_GONE_TEXTS = 20_000


@dataclass(slots=True)
class _Wait:
    """A text that a client waits for, or has waited for."""

    waiting: int = 0
    joined: int = 0
    runs: int = 0
    # No client waited for it shortly before, so its run belongs to the present clients.
    fresh: bool = True
    left_at: float = 0.0
    # When the server had dropped it, or must have: no batch is made with it from then on.
    dropped_at: float | None = None

    @property
    def of_one(self) -> bool:
        """Whether a single call sent it, once."""
        return self.joined == 1 and self.fresh


@dataclass(slots=True)
class Account:
    """How many rows were run.

    Attributes:
        rows: All of them.
        again: To find who was to blame.
        for_nobody: Those of all rows that no client waited for when they began.
        for_nobody_unheard: Of these, those of calls that the server had not heard the end of.
        for_nobody_again: Of these, those that were run to find who was to blame.
        left_behind: Those with a waiting client at the beginning, and none at the end.
        nobody_s_max: The longest time without a waiting client of a row that began.
    """

    rows: int = 0
    again: int = 0
    for_nobody: int = 0
    for_nobody_unheard: int = 0
    for_nobody_again: int = 0
    left_behind: int = 0
    nobody_s_max: float = 0.0


@dataclass(slots=True)
class Ledger:
    """The accounts of one run. Safe to use from any thread.

    Attributes:
        findings: Is told of what must not be.
        account: What was run.
        always: Texts that are always waited for: the health check's.
    """

    findings: Findings
    account: Account = field(default_factory=Account)
    always: set[bytes] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waits: dict[bytes, _Wait] = field(default_factory=dict)
    _gone: OrderedDict[bytes, _Wait] = field(default_factory=OrderedDict)

    @property
    def waiting(self) -> int:
        """How many texts are waited for."""
        return len(self._waits)

    def join(self, digests: Iterable[bytes]) -> None:
        """A call begins to wait for these texts."""
        with self._lock:
            for digest in digests:
                wait = self._waits.get(digest)
                if wait is None:
                    before = self._gone.pop(digest, None)
                    wait = self._waits[digest] = _Wait(fresh=before is None)
                wait.waiting += 1
                wait.joined += 1

    def leave(self, digests: Iterable[bytes]) -> int:
        """Record that a call no longer waits.

        Returns:
            How many runs there were of texts that were its own alone.
        """
        now = time.monotonic()
        runs = 0
        with self._lock:
            for digest in digests:
                wait = self._waits[digest]
                wait.waiting -= 1
                runs += wait.runs * wait.of_one
                if not wait.waiting:
                    wait.left_at = now
                    self._gone[digest] = self._waits.pop(digest)
            while len(self._gone) > _GONE_TEXTS:
                self._gone.popitem(last=False)
        return runs

    def dropped(self, digests: Sequence[bytes]) -> None:
        """The server must have taken these texts of one call out of its queue by now."""
        now = time.monotonic()
        with self._lock:
            for digest in digests:
                wait = self._waits.get(digest) or self._gone.get(digest)
                if wait is not None:
                    wait.dropped_at = now

    def began(self, digests: Collection[bytes], *, taken_at: float, again: bool) -> set[bytes]:
        """A batch begins to run.

        Args:
            digests: Its rows.
            taken_at: The lane did not have it before this time.
            again: Whether a part of a batch is run that failed.

        Returns:
            The rows that a client waits for.
        """
        now = time.monotonic()
        account = self.account
        wanted: set[bytes] = set()
        with self._lock:
            account.rows += len(digests)
            account.again += again * len(digests)
            for digest in digests:
                wait = self._waits.get(digest)
                if wait is not None:
                    wait.runs += 1
                    wanted.add(digest)
                elif digest not in self.always:
                    wait = self._gone.get(digest)
                    if wait is None:
                        self.findings.add("a text was run that nobody sent, or long ago")
                        continue
                    account.for_nobody += 1
                    account.for_nobody_unheard += wait.dropped_at is None
                    account.for_nobody_again += again
                    account.nobody_s_max = max(account.nobody_s_max, now - wait.left_at)
                dropped_at = wait.dropped_at if wait and wait.of_one else None
                if dropped_at is not None and dropped_at < taken_at:
                    self.findings.add(
                        f"a text was taken into a batch at least {taken_at - dropped_at:.4f} s"
                        " after the server had dropped it"
                    )
        return wanted

    def ended(self, digests: Iterable[bytes]) -> None:
        """A batch is over; these of its rows were waited for when it began."""
        with self._lock:
            self.account.left_behind += sum(digest not in self._waits for digest in digests)
