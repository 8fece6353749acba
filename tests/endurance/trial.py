"""What all clients of one run share."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from embedgrpc.server.loading.catalog import LoadedModel
from tests.endurance.findings import Findings
from tests.endurance.ledger import Ledger
from tests.endurance.texts import TextSource
from tests.server.service import Client, Service

WORK_CLASS_KEY = "embedgrpc-work-class"
CALLER_KEY = "x-caller"
_CALLERS = 5
_LATER_CALLS = 3


class Outcome(StrEnum):
    """What became of a text, as its client sees it."""

    ANSWERED = "answered"
    # By its own fault, or that of another text of the same unary call.
    FAILED = "failed"
    # It holds nothing, or another text of its unary call does: it never came as far as a queue.
    BLANK = "blank"
    REFUSED = "refused"
    # Refused in favour of another caller after it was let in: some of its texts may have been run.
    GAVE_WAY = "gave_way"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Trial:
    """One run.

    Attributes:
        service: The server, and a connection to it.
        loaded: Its model.
        clients: Connections that all share.
        narrow_clients: The same, with windows that a single message fills: when one of their
            streams is not read, the server cannot write.
        source: The source of texts.
        ledger: Knows who waits for what.
        findings: What went wrong.
        items_max: How many texts to send.
        ends_at: When to stop, on the clock of `time.monotonic`.
        sent: How many texts were sent.
        outcomes: What became of them.
        calls: What was called, and how it ended.
        unary: Of the outcomes, those of unary calls.
    """

    service: Service
    loaded: LoadedModel
    clients: list[Client]
    narrow_clients: list[Client]
    source: TextSource
    ledger: Ledger
    findings: Findings
    items_max: int
    ends_at: float
    sent: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    unary: Counter[Outcome] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def goes_on(self) -> bool:
        """Whether another call may begin."""
        return (
            self.sent < self.items_max
            and time.monotonic() < self.ends_at
            and not self.findings.enough
        )

    async def make_heard(self, client: Client, digests: Sequence[bytes]) -> None:
        """Wait until the server has noticed a cancelled call on this connection.

        It has then answered calls that came after the end of that one.
        """
        for _ in range(_LATER_CALLS):
            await client.status("")
        self.ledger.dropped(digests)

    def count(self, outcome: Outcome, texts: int, *, unary: bool = False) -> None:
        """Count the outcomes of some texts."""
        self.outcomes[outcome] += texts
        if unary:
            self.unary[outcome] += texts


def metadata_for(choices: random.Random, *, usual: str, other: str) -> tuple[tuple[str, str], ...]:
    """Draw the metadata of a call: its caller and its work class.

    Args:
        choices: What it is drawn from.
        usual: The class that calls of this shape have where none is stated.
        other: The class that is stated now and then.
    """
    caller = (CALLER_KEY, f"caller-{min(int(choices.expovariate(0.7)), _CALLERS - 1)}")
    stated = choices.random()
    if stated < 0.15:
        return (caller, (WORK_CLASS_KEY, other))
    return (caller, (WORK_CLASS_KEY, usual)) if stated < 0.3 else (caller,)
