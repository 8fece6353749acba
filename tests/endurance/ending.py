"""What is left once every call is over, which is nothing; and whether the accounts agree."""

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.work_class import WorkClass
from tests.endurance.holdings import holdings
from tests.endurance.trial import Outcome, Trial
from tests.endurance.watching import CountingAdmission

_SETTLE_S_MAX = 20.0
_REFUSALS = (
    SequenceOutcome.REFUSED_FULL,
    SequenceOutcome.REFUSED_LATE,
    SequenceOutcome.REFUSED_OVERLOADED,
)


@dataclass(frozen=True, slots=True)
class Household:
    """The state of a server and its process while no call is open.

    Attributes:
        tasks: How many tasks of the event loop.
        threads: The names of the server's threads.
        other_threads: The names of all other threads, without numbers, and how many there are.
        held: The size of each container in the server's engine.
    """

    tasks: int
    threads: frozenset[str]
    other_threads: Counter[str]
    held: dict[str, int]

    @classmethod
    def of(cls, trial: Trial) -> "Household":
        """Record the state now."""
        loaded = trial.loaded
        names = [thread.name for thread in threading.enumerate()]
        own = frozenset(name for name in names if name.startswith(("lane-", "tokenize-")))
        # The event loop's executor starts them as it needs them, up to a limit, and keeps them.
        names = [name for name in names if not name.startswith("asyncio_")]
        return cls(
            tasks=len(asyncio.all_tasks()),
            threads=own,
            other_threads=Counter(name.rstrip("0123456789") for name in names if name not in own),
            held=holdings(
                scheduler=loaded.scheduler,
                admission=loaded.admissions[0],
                pipeline=loaded.embedder and loaded.embedder.pipeline,
                streams=trial.service.server._open_streams,
            ),
        )

    def more_than(self, before: "Household") -> dict[str, object]:
        """Return what has grown since then, and which threads are gone."""
        more: dict[str, object] = {
            path: size for path, size in self.held.items() if size > before.held.get(path, 0)
        }
        if self.tasks > before.tasks:
            more["tasks"] = self.tasks - before.tasks
        if others := self.other_threads - before.other_threads:
            more["threads"] = dict(others)
        if self.threads != before.threads:
            more["threads that died"] = sorted(before.threads - self.threads)
        return more


async def check_nothing_is_left(trial: Trial, before: Household) -> None:
    """Report what is left although no call is open."""
    left: dict[str, object] = {}
    try:
        async with asyncio.timeout(_SETTLE_S_MAX):
            while left := _still_there(trial, before):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
    except TimeoutError:
        trial.findings.add(f"when all is over there are still {left}")
    if trial.ledger.waiting:
        trial.findings.add(f"{trial.ledger.waiting} texts are still waited for")


def _still_there(trial: Trial, before: Household) -> dict[str, object]:
    admission = trial.loaded.admissions[0]
    assert isinstance(admission, CountingAdmission)
    left = Household.of(trial).more_than(before)
    met: Counter[WorkClass] = Counter()
    for (work_class, _), inputs in admission.ledger.outcome_counts.items():
        met[work_class] += inputs
    for work_class in WorkClass:
        room = admission.ledger.inputs(work_class), admission.ledger.tokens(work_class)
        if any(room):
            left[f"room of {work_class.name}"] = room
        if met[work_class] != admission.reached[work_class]:
            reached = admission.reached[work_class]
            left[f"fates of {work_class.name}"] = f"{met[work_class]} of {reached} inputs"
    return left


def check_fates(trial: Trial) -> Counter[SequenceOutcome]:
    """Compare the server's counts with those of the clients; return the server's."""
    fates: Counter[SequenceOutcome] = Counter()
    for (_, fate), inputs in trial.loaded.admissions[0].ledger.outcome_counts.items():
        fates[fate] += inputs
    seen = trial.outcomes
    refused = sum(fates[fate] for fate in _REFUSALS)
    # The progress of a call without a response is unknown from outside.
    unseen = sum(trial.unary[one] for one in (Outcome.EXPIRED, Outcome.CANCELLED, Outcome.GAVE_WAY))
    if fates[SequenceOutcome.ANSWERED] < seen[Outcome.ANSWERED]:
        trial.findings.add(f"{seen[Outcome.ANSWERED]} were answered, {fates} were counted")
    if not seen[Outcome.REFUSED] <= refused <= seen[Outcome.REFUSED] + unseen:
        trial.findings.add(f"{seen[Outcome.REFUSED]} were refused, {fates} were counted")
    reached = sum(fates.values())
    certain = sum(seen[one] for one in (Outcome.ANSWERED, Outcome.FAILED, Outcome.REFUSED))
    if not certain <= reached:
        trial.findings.add(f"{certain} must have been counted, {fates} were")
    return fates
