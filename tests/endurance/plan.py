"""What one run is to be, and what came of it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from tests.endurance.judging_backend import JudgingBackend
from tests.endurance.ledger import Account
from tests.endurance.trial import Outcome


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run.

    Attributes:
        items: How many texts to send.
        seed: What is drawn from.
        cache_dir: Where the fixture's graph is built.
        seconds_max: The longest that it sends.
        callers: How many client programs there are.
        lanes: How many batches run at once.
        lanes_compete: Whether the backend says that they slow each other down.
        queued_inputs_max: How many inputs of a class may wait: with few much waits at the door.
        backend: Makes the backend.
        progress: Is told how it goes on, now and then.
    """

    items: int
    seed: int
    cache_dir: Path
    seconds_max: float = float("inf")
    callers: int = 20
    lanes: int = 3
    lanes_compete: bool = False
    queued_inputs_max: int = 200
    backend: Callable[..., JudgingBackend] = JudgingBackend
    progress: Callable[[str], None] = lambda _: None


@dataclass(slots=True)
class Summary:
    """What came of a run.

    Attributes:
        problems: What was wrong; nothing in a good run.
        sent: How many texts were sent.
        outcomes: What became of them, as clients see it.
        calls: How calls ended.
        fates: What became of those that reached a queue, as the server counts it.
        account: What was computed for whom.
        totals: What the server's own metrics stand at.
        seconds: How long it took.
        rss_mb: Memory in the middle of the run, and at its end.
    """

    problems: list[str]
    sent: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    fates: Counter[SequenceOutcome] = field(default_factory=Counter)
    account: Account = field(default_factory=Account)
    totals: dict[str, int | float] = field(default_factory=dict)
    seconds: float = 0.0
    rss_mb: tuple[float, float] = (0.0, 0.0)
