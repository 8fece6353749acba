"""The server's own parts, which tell besides what they are asked to do."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.scheduling.scheduler import Scheduler
from embedgrpc.engine.work import Job
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.server.loading import started_route
from tests.endurance.findings import Findings
from tests.endurance.ledger import Ledger
from tests.endurance.texts import digest_of


class CountingAdmission(Admission):
    """Counts the work that it admits, and reports when it admits too much.

    Attributes:
        reached: How many inputs, by class.
        most_inputs: The most inputs that took room at once, by class.
    """

    def __init__(self, *, findings: Findings, max_inputs: int, **limits: Any) -> None:
        super().__init__(max_inputs=max_inputs, **limits)
        self.reached: Counter[WorkClass] = Counter()
        self.most_inputs = dict.fromkeys(WorkClass, 0)
        self._findings = findings
        self._limit = max_inputs

    def admit(
        self, *, inputs: int, tokens: int, remaining_s: float, caller: str = ""
    ) -> Reservation:
        """Admit or refuse interactive work; see `Admission`."""
        try:
            room = super().admit(
                inputs=inputs, tokens=tokens, remaining_s=remaining_s, caller=caller
            )
        except OverloadedError:
            self.reached[WorkClass.INTERACTIVE] += inputs
            raise
        return self._count(room)

    def admit_if_room(
        self,
        work_class: WorkClass,
        *,
        inputs: int,
        tokens: int,
        caller: str = "",
        waits_since: float = math.inf,
    ) -> Reservation | None:
        """Admit bulk work if there is room; see `Admission`."""
        room = super().admit_if_room(
            work_class, inputs=inputs, tokens=tokens, caller=caller, waits_since=waits_since
        )
        return room and self._count(room)

    def admit_always(self) -> Reservation:
        """Admit a health check; see `Admission`."""
        self.reached[WorkClass.INTERACTIVE] += 1
        return super().admit_always()

    def _count(self, room: Reservation) -> Reservation:
        work_class = room.work_class
        self.reached[work_class] += room.inputs
        held = self.ledger.inputs(work_class)
        self.most_inputs[work_class] = max(self.most_inputs[work_class], held)
        # A queue without anything but health checks takes anything; and they are always let in.
        others = held - self.ledger.probe_inputs(work_class)
        taken, _ = self.ledger.room(work_class)
        if taken > self._limit + 1 and others != room.inputs:
            self._findings.add(f"{taken} inputs take room; the limit is {self._limit}")
        return room


class TellingScheduler(Scheduler):
    """Reports dropped jobs to the ledger."""

    def __init__(self, *, ledger: Ledger, **arguments: Any) -> None:
        self._ledger = ledger
        super().__init__(**arguments)

    def cancel(self, job: Job) -> None:
        """Remove a job from the queue; see `Scheduler`."""
        super().cancel(job)
        self._ledger.dropped([digest_of(one.input_ids) for one in job.sequences if one is not None])


@contextmanager
def watched_engines(ledger: Ledger, findings: Findings) -> Iterator[None]:
    """Load models with these classes inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(started_route, "Admission", partial(CountingAdmission, findings=findings))
        patch.setattr(started_route, "Scheduler", partial(TellingScheduler, ledger=ledger))
        yield
