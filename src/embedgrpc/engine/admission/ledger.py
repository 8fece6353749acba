"""Counts the queued and running work of one model by class, caller and job."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.work_class import WorkClass


class Reservation:
    """The queue room that one job holds.

    Attributes:
        work_class: The class whose limits apply.
        caller: The caller it belongs to.
        inputs: Inputs that still hold room.
        tokens: Tokens that still hold room.
        estimated_tokens: The initial estimate for those inputs.
        is_probe: Whether it is a health check's.
        stop: Ends the job with an error, in favour of another caller's; None if it must not.
    """

    __slots__ = (
        "_ledger",
        "caller",
        "estimated_tokens",
        "inputs",
        "is_probe",
        "stop",
        "tokens",
        "work_class",
    )

    def __init__(
        self,
        ledger: "Ledger",
        work_class: WorkClass,
        *,
        caller: str,
        inputs: int,
        tokens: int,
        is_probe: bool,
    ) -> None:
        self._ledger = ledger
        self.work_class = work_class
        self.caller = caller
        self.inputs = inputs
        self.tokens = tokens
        self.estimated_tokens = tokens
        self.is_probe = is_probe
        self.stop: Callable[[OverloadedError], None] | None = None

    @property
    def room(self) -> tuple[int, int]:
        """The inputs and tokens that it takes away from others."""
        return self._ledger.room_of(self.inputs, self.tokens)

    def settle(self, tokens: int) -> None:
        """Replace the estimate with the counted tokens. From any thread."""
        self._ledger.settle(self, tokens)

    def release(self, inputs: int, tokens: int, outcome: SequenceOutcome) -> None:
        """Release the room of inputs with this outcome. On the event loop."""
        self._ledger.release(self, inputs, tokens, outcome)

    def release_all(self, outcome: SequenceOutcome = SequenceOutcome.CANCELLED) -> None:
        """Release all remaining room; without effect when none is left."""
        self._ledger.release(self, self.inputs, self.tokens, outcome)


class Ledger:
    """The room that jobs hold, and the outcomes of their inputs.

    Args:
        job_inputs_max: The most inputs for which one job counts when room is counted.
        job_tokens_max: The most tokens.

    Attributes:
        outcome_counts: Number of inputs by class and outcome.
        on_room: Called on the event loop when room was released.
    """

    def __init__(
        self, *, job_inputs_max: float = math.inf, job_tokens_max: float = math.inf
    ) -> None:
        self._job_max = job_inputs_max, job_tokens_max
        self.outcome_counts: Counter[tuple[WorkClass, SequenceOutcome]] = Counter()
        self.on_room: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._inputs = dict.fromkeys(WorkClass, 0)
        self._tokens = dict.fromkeys(WorkClass, 0)
        # What is left of the two when large jobs count as the largest that fit.
        self._room = dict.fromkeys(WorkClass, (0, 0))
        self._estimated_tokens_done = dict.fromkeys(WorkClass, 0)
        self._probe_inputs = dict.fromkeys(WorkClass, 0)
        self._job_counts = dict.fromkeys(WorkClass, 0)
        # Inputs and tokens by class and caller; without zeros.
        self._held_inputs: Counter[tuple[WorkClass, str]] = Counter()
        self._held: Counter[tuple[WorkClass, str]] = Counter()
        self._jobs: dict[WorkClass, dict[str, dict[Reservation, None]]] = {
            work_class: {} for work_class in WorkClass
        }

    @property
    def is_empty(self) -> bool:
        """Whether no room is held."""
        return not (
            self._held
            or self._held_inputs
            or any(self._jobs.values())
            or any(self._inputs.values())
            or any(self._tokens.values())
        )

    def inputs(self, work_class: WorkClass) -> int:
        """Return how many inputs of a class hold room."""
        return self._inputs[work_class]

    def tokens(self, work_class: WorkClass) -> int:
        """Return how many tokens of a class hold room."""
        return self._tokens[work_class]

    def room(self, work_class: WorkClass) -> tuple[int, int]:
        """Return how many inputs and tokens of a class count against the limits."""
        return self._room[work_class]

    def room_of(self, inputs: int, tokens: int) -> tuple[int, int]:
        """Return for how many inputs and tokens a job counts."""
        inputs_max, tokens_max = self._job_max
        return int(min(inputs, inputs_max)), int(min(tokens, tokens_max))

    def jobs(self, work_class: WorkClass) -> int:
        """Return how many jobs of a class hold room."""
        return self._job_counts[work_class]

    def probe_inputs(self, work_class: WorkClass) -> int:
        """Return how many of the inputs that hold room are health checks'."""
        return self._probe_inputs[work_class]

    def estimated_tokens_done(self, work_class: WorkClass) -> int:
        """Return how many tokens of a class have released their room since the start.

        They count by their initial estimates, to be comparable with those of new work. An estimate
        may be a third of the real count, or three times it.
        """
        return self._estimated_tokens_done[work_class]

    def held_tokens(self, work_class: WorkClass, caller: str) -> int:
        """Return how many tokens of a caller hold room."""
        return self._held[work_class, caller]

    def held_inputs(self, work_class: WorkClass, caller: str) -> int:
        """Return how many inputs of a caller hold room."""
        return self._held_inputs[work_class, caller]

    def callers(self, work_class: WorkClass) -> Iterable[str]:
        """Return the callers with jobs of a class. On the event loop."""
        return self._jobs[work_class]

    def newest_first(self, work_class: WorkClass, caller: str) -> Iterable[Reservation]:
        """Return the jobs of a caller, the newest first. On the event loop."""
        return reversed(self._jobs[work_class].get(caller, {}))

    def ahead(self, work_class: WorkClass, caller: str, tokens: int, *, limit: float) -> int:
        """Return how many tokens of a class run before a job would be done.

        Of every other job, as many as its own; of every other caller's jobs, at most as many as
        those of its own caller, this one included.

        Args:
            work_class: The class.
            caller: The job's caller.
            tokens: The job's tokens.
            limit: Results above this need not be exact.
        """
        jobs = self._jobs[work_class]
        ahead = 0
        for job in jobs.get(caller, ()):
            ahead += min(job.tokens, tokens)
            if ahead > limit:
                return ahead
        own = ahead + tokens
        for other, others in jobs.items():
            if other == caller:
                continue
            turn = 0
            for job in others:
                turn += min(job.tokens, tokens)
                if turn >= own:
                    turn = own
                    break
            ahead += turn
            if ahead > limit:
                break
        return ahead

    def reserve(
        self,
        work_class: WorkClass,
        caller: str,
        inputs: int,
        tokens: int,
        *,
        is_probe: bool = False,
    ) -> Reservation:
        """Reserve room. On the event loop."""
        with self._lock:
            self._add(work_class, caller, inputs, tokens)
            self._count_room(work_class, (0, 0), self.room_of(inputs, tokens))
            if is_probe:
                self._probe_inputs[work_class] += inputs
        job = Reservation(
            self, work_class, caller=caller, inputs=inputs, tokens=tokens, is_probe=is_probe
        )
        self._jobs[work_class].setdefault(caller, {})[job] = None
        self._job_counts[work_class] += 1
        return job

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Replace the estimate with the counted tokens, unless released. From any thread."""
        with self._lock:
            if reservation.inputs:
                before, more = reservation.room, tokens - reservation.tokens
                self._add(reservation.work_class, reservation.caller, 0, more)
                reservation.tokens = tokens
                self._count_room(reservation.work_class, before, reservation.room)

    def release(
        self, reservation: Reservation, inputs: int, tokens: int, outcome: SequenceOutcome
    ) -> None:
        """Release room and call `on_room`. On the event loop."""
        with self._lock:
            inputs = min(inputs, reservation.inputs)
            # The last input releases all remaining tokens: those of inputs that could not be
            # tokenized were never counted.
            if inputs == reservation.inputs:
                tokens = reservation.tokens
            tokens = min(tokens, reservation.tokens)
            if inputs:
                # The last input takes the remainder, so that rounding loses nothing.
                estimated = reservation.estimated_tokens * inputs // reservation.inputs
                reservation.estimated_tokens -= estimated
                self._estimated_tokens_done[reservation.work_class] += estimated
            if reservation.is_probe:
                self._probe_inputs[reservation.work_class] -= inputs
            before = reservation.room
            reservation.inputs -= inputs
            reservation.tokens -= tokens
            self._count_room(reservation.work_class, before, reservation.room)
            self._add(reservation.work_class, reservation.caller, -inputs, -tokens)
            if inputs:
                self.outcome_counts[reservation.work_class, outcome] += inputs
                if not reservation.inputs:
                    self._forget(reservation)
        self.on_room()

    def _forget(self, reservation: Reservation) -> None:
        jobs = self._jobs[reservation.work_class]
        self._job_counts[reservation.work_class] -= 1
        del jobs[reservation.caller][reservation]
        if not jobs[reservation.caller]:
            del jobs[reservation.caller]

    def _count_room(
        self, work_class: WorkClass, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        inputs, tokens = self._room[work_class]
        self._room[work_class] = inputs + after[0] - before[0], tokens + after[1] - before[1]

    def _add(self, work_class: WorkClass, caller: str, inputs: int, tokens: int) -> None:
        self._inputs[work_class] += inputs
        self._tokens[work_class] += tokens
        for held, amount in ((self._held_inputs, inputs), (self._held, tokens)):
            if amount:
                left = held.get((work_class, caller), 0) + amount
                if left:
                    held[work_class, caller] = left
                else:
                    held.pop((work_class, caller), None)
