"""Counts what is queued or running for one model: by class, by caller, by job."""

import threading
from collections import Counter
from collections.abc import Callable

from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.work_class import WorkClass


class Reservation:
    """Room taken by one job.

    Attributes:
        work_class: The class whose room it is.
        caller: Whose job it is.
        inputs: Inputs that still take room.
        tokens: Tokens that still take room.
        estimated_tokens: What was estimated, before the tokens were counted, for the inputs that
            still take room.
        is_probe: Whether it is a health check's.
    """

    __slots__ = (
        "_ledger",
        "caller",
        "estimated_tokens",
        "inputs",
        "is_probe",
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

    def settle(self, tokens: int) -> None:
        """Replaces the estimate by the true number of tokens. From any thread."""
        self._ledger.settle(self, tokens)

    def release(self, inputs: int, tokens: int, fate: SequenceOutcome) -> None:
        """Gives back the room of inputs that met their fate. On the event loop."""
        self._ledger.release(self, inputs, tokens, fate)

    def release_all(self) -> None:
        """Gives back all that is left, for nobody waits for it; harmless when nothing is."""
        self._ledger.release(self, self.inputs, self.tokens, SequenceOutcome.CANCELLED)


class Ledger:
    """The room that jobs take, and the fates of their inputs.

    Attributes:
        outcome_counts: How many inputs met which fate, by class.
        on_room: Called, on the event loop, when room was given back.
    """

    def __init__(self) -> None:
        self.outcome_counts: Counter[tuple[WorkClass, SequenceOutcome]] = Counter()
        self.on_room: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._inputs = dict.fromkeys(WorkClass, 0)
        self._tokens = dict.fromkeys(WorkClass, 0)
        self._estimated_tokens_done = dict.fromkeys(WorkClass, 0)
        self._probe_inputs = dict.fromkeys(WorkClass, 0)
        self._job_counts = dict.fromkeys(WorkClass, 0)
        # Tokens by class and caller; of those that have none there is no entry.
        self._held: Counter[tuple[WorkClass, str]] = Counter()
        self._jobs: dict[WorkClass, dict[str, dict[Reservation, None]]] = {
            work_class: {} for work_class in WorkClass
        }

    @property
    def is_empty(self) -> bool:
        """Whether nothing takes room."""
        return not (
            self._held
            or any(self._jobs.values())
            or any(self._inputs.values())
            or any(self._tokens.values())
        )

    def inputs(self, work_class: WorkClass) -> int:
        """Tells how many inputs of a class take room now."""
        return self._inputs[work_class]

    def tokens(self, work_class: WorkClass) -> int:
        """Tells how many tokens of a class take room now."""
        return self._tokens[work_class]

    def jobs(self, work_class: WorkClass) -> int:
        """Return how many jobs of a class take room now."""
        return self._job_counts[work_class]

    def probe_inputs(self, work_class: WorkClass) -> int:
        """Return how many of the inputs that take room are health checks'."""
        return self._probe_inputs[work_class]

    def estimated_tokens_done(self, work_class: WorkClass) -> int:
        """Return how many tokens of a class have given their room back since the start.

        They are counted as they were estimated when they came, so that they can be compared with
        the estimates of what comes. An estimate may be a third of the truth, or three times it.
        """
        return self._estimated_tokens_done[work_class]

    def held_tokens(self, work_class: WorkClass, caller: str) -> int:
        """Tells how many tokens of a caller take room now."""
        return self._held[work_class, caller]

    def ahead(self, work_class: WorkClass, caller: str, tokens: int, *, limit: float) -> int:
        """Tells how many tokens of a class are run before a job would be done.

        Of every other job as many as its own; and of every other caller's jobs as many as those
        of its own caller, this one included.

        Args:
            work_class: The class.
            caller: Whose job it is.
            tokens: How many it has.
            limit: What is above this need not be exact.
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
        """Takes room. On the event loop."""
        with self._lock:
            self._add(work_class, caller, inputs, tokens)
            if is_probe:
                self._probe_inputs[work_class] += inputs
        job = Reservation(
            self, work_class, caller=caller, inputs=inputs, tokens=tokens, is_probe=is_probe
        )
        self._jobs[work_class].setdefault(caller, {})[job] = None
        self._job_counts[work_class] += 1
        return job

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Replaces a guess by the truth, unless the room was given back. From any thread."""
        with self._lock:
            if reservation.inputs:
                more = tokens - reservation.tokens
                self._add(reservation.work_class, reservation.caller, 0, more)
                reservation.tokens = tokens

    def release(
        self, reservation: Reservation, inputs: int, tokens: int, fate: SequenceOutcome
    ) -> None:
        """Takes room back, and tells whoever waits for it. On the event loop."""
        with self._lock:
            inputs = min(inputs, reservation.inputs)
            # The last input takes what is left of the tokens: of inputs that could not be
            # tokenized they were only guessed.
            if inputs == reservation.inputs:
                tokens = reservation.tokens
            tokens = min(tokens, reservation.tokens)
            if inputs:
                # The last input takes what is left: nothing is lost by rounding.
                estimated = reservation.estimated_tokens * inputs // reservation.inputs
                reservation.estimated_tokens -= estimated
                self._estimated_tokens_done[reservation.work_class] += estimated
            if reservation.is_probe:
                self._probe_inputs[reservation.work_class] -= inputs
            reservation.inputs -= inputs
            reservation.tokens -= tokens
            self._add(reservation.work_class, reservation.caller, -inputs, -tokens)
            if inputs:
                self.outcome_counts[reservation.work_class, fate] += inputs
                if not reservation.inputs:
                    self._forget(reservation)
        self.on_room()

    def _forget(self, reservation: Reservation) -> None:
        jobs = self._jobs[reservation.work_class]
        self._job_counts[reservation.work_class] -= 1
        del jobs[reservation.caller][reservation]
        if not jobs[reservation.caller]:
            del jobs[reservation.caller]

    def _add(self, work_class: WorkClass, caller: str, inputs: int, tokens: int) -> None:
        self._inputs[work_class] += inputs
        self._tokens[work_class] += tokens
        self._held[work_class, caller] += tokens
        if not self._held[work_class, caller]:
            del self._held[work_class, caller]
