"""Accepts or refuses work, so that everything behind it is bounded.

Interactive work is refused when there is no room for it or when it could not finish in time. Bulk
work waits for room, and meanwhile its stream is not read. How long a call may wait depends on why
the queue is long. A burst may fill the queue up to a limit in seconds, because all of it can be
answered. In an overload, work keeps arriving faster than it can be done, and waiting only makes
answers late: then calls are accepted only while the queue is short.

The limits apply to the work that runs before a call, not to the whole queue. Callers take turns,
and so do the jobs of one caller. So a short call waits neither for all of a long one nor for all
calls of a caller who sends too many. Nor can a few callers keep the queue full: the newest calls of
the one with the most in it give way to a caller with less.

Source: the queue with two limits follows CoDel as Facebook uses it in servers ("Fail at Scale",
2015); early, cheap refusals follow "Site Reliability Engineering", chapter 21.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from embedgrpc.engine.admission import giving_way
from embedgrpc.engine.admission.drain_rate import DrainRate
from embedgrpc.engine.admission.ledger import Ledger, Reservation
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.admission.overload import OverloadDetector
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.work_class import WorkClass

# English has about four bytes per token, Chinese three to six. A high estimate would refuse work
# that fits, so this leans towards English; the real count replaces it after tokenization. Bytes,
# because their number is known without looking at the texts.
_BYTES_PER_TOKEN = 4
_RETRY_DELAY_MIN_S = 0.1
_RETRY_DELAY_MAX_S = 30.0
# During an overload, calls are accepted while at most this many batches, plus their own tokens,
# are ahead: one batch runs, and half of the next waits. A longer queue adds latency and answers no
# more calls.
_SHORT_QUEUE_BATCHES = 1.5
# A long call may always wait for this many times its own work.
_PATIENCE = 4
# A queue is long when it takes longer than this and holds more jobs than this. Callers who send
# the next call after each answer keep as many jobs queued as there are callers, which is no
# overload.
_LONG_QUEUE_S = 1.0
_LONG_QUEUE_JOBS = 32
# Of each limit, a job counts for this part at the most. So one that is larger than the limits gets
# in as soon as others hold no more than the rest, and small ones find room beside it.
_JOB_SHARE_MAX = 0.75
# Assumed duration of a full batch before the first ones ran. Most models take less on suitable
# machines; a high estimate would refuse work that could be done.
_GUESSED_BATCH_S = 0.05
# The scheduler gives one of five batches to bulk work that waits.
_INTERACTIVE_SHARE = 0.8


def estimate_tokens(size_bytes: int, inputs: int, max_tokens: int) -> int:
    """Return an estimate of the number of tokens, before tokenization."""
    return min(size_bytes // _BYTES_PER_TOKEN + 2 * inputs, max_tokens * inputs)


class Admission:
    """Accepts or refuses the work for one model.

    Each work class has its own limits, so that neither can fill the other's queue.

    Args:
        max_inputs: Maximum inputs per class.
        max_tokens: Maximum tokens per class; estimates until they are counted.
        batch_tokens: Tokens of a full batch.
        max_queue_s: Maximum predicted wait of an interactive call, in seconds.
        weights: Shares of callers relative to others; 1 for those not listed.
        clock: Returns the time in seconds.

    Attributes:
        ledger: Counts the accepted work and the outcomes.
        drain_rate: Learns the speed from every batch.
    """

    def __init__(
        self,
        *,
        max_inputs: int,
        max_tokens: int,
        batch_tokens: int,
        max_queue_s: float,
        weights: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = Ledger(
            job_inputs_max=max(int(_JOB_SHARE_MAX * max_inputs), 1),
            job_tokens_max=max(int(_JOB_SHARE_MAX * max_tokens), 1),
        )
        self.drain_rate = DrainRate(_GUESSED_BATCH_S / batch_tokens)
        self._max_inputs = max_inputs
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self._max_queue_s = max_queue_s
        self._weights = weights or {}
        self._clock = clock
        self._overload = OverloadDetector()
        # For work that has waited for too long, in inputs and tokens.
        self._held_back = 0, 0

    @property
    def inputs(self) -> int:
        """Inputs of both classes that are queued or running."""
        return sum(self.ledger.inputs(work_class) for work_class in WorkClass)

    @property
    def overloaded(self) -> bool:
        """Whether more work comes than can be done, so that calls are refused."""
        return self._overload.is_active(self._clock())

    def set_batch_tokens(self, tokens: int) -> None:
        """Set the number of tokens of a full batch. From any thread."""
        self._batch_tokens = tokens

    def admit(
        self, *, inputs: int, tokens: int, remaining_s: float, caller: str = ""
    ) -> Reservation:
        """Accept or refuse interactive work.

        Args:
            inputs: Number of inputs.
            tokens: Estimated number of tokens.
            remaining_s: Time left until the call's deadline.
            caller: The caller it belongs to.

        Returns:
            The room that the work holds.

        Raises:
            OverloadedError: There is no room, or the work could not finish in time.
        """
        now = self._clock()
        token_s = self.seconds(1)
        is_long = self._is_long(token_s)
        overloaded = self._overload.arrive(
            now,
            is_long=is_long,
            done=self.ledger.estimated_tokens_done(WorkClass.INTERACTIVE),
        )
        giving_way_to_it: Sequence[Reservation] = ()
        if not self._fits(WorkClass.INTERACTIVE, inputs, tokens):
            giving_way_to_it = self._giving_way_to(caller, inputs, tokens)
            if is_long and not self._is_huge(inputs, tokens):
                # What gives way was counted when it came in.
                self._overload.refuse(now, 0 if giving_way_to_it else tokens)
            if not giving_way_to_it:
                self._refuse(
                    inputs,
                    SequenceOutcome.REFUSED_FULL,
                    "QUEUE_FULL",
                    f"{self.ledger.inputs(WorkClass.INTERACTIVE)} inputs with about"
                    f" {self.ledger.tokens(WorkClass.INTERACTIVE)} tokens are queued; the limits"
                    f" are {self._max_inputs} and {self._max_tokens}",
                )
        if overloaded:
            limit: float = self._short_queue + tokens
        else:
            limit = max(self._max_queue_s / token_s, self._short_queue, _PATIENCE * tokens)
        in_time = remaining_s / token_s - tokens
        # The whole queue is an upper bound of the work ahead, which usually saves the summing up.
        ahead = self.ledger.tokens(WorkClass.INTERACTIVE)
        if ahead > min(limit, in_time):
            most = max(min(limit, in_time), 0)
            ahead = self.ledger.ahead(WorkClass.INTERACTIVE, caller, tokens, limit=most)
        # With nothing ahead the call is tried: otherwise a wrong rate would never be corrected.
        if ahead and ahead > in_time:
            self._refuse(
                inputs,
                SequenceOutcome.REFUSED_LATE,
                "DEADLINE_UNREACHABLE",
                f"this call would finish in {(ahead + tokens) * token_s:.2f} s or later, and its"
                f" deadline is in {remaining_s:.2f} s",
            )
        if ahead > limit:
            self._overload.refuse(now, tokens)
            # The same text for calls of all lengths, so that the response is built only once.
            if overloaded:
                self._refuse(
                    inputs,
                    SequenceOutcome.REFUSED_OVERLOADED,
                    "STANDING_QUEUE",
                    f"more than {self._short_queue} tokens plus its own are ahead of this call,"
                    " which is the limit during an overload",
                )
            self._refuse(
                inputs,
                SequenceOutcome.REFUSED_FULL,
                "QUEUE_FULL",
                f"the work ahead of this call takes longer than {self._max_queue_s:g} s and"
                f" {_PATIENCE} times as long as its own, which is the limit",
            )
        self._overload.let_in(tokens)
        reservation = self.ledger.reserve(WorkClass.INTERACTIVE, caller, inputs, tokens)
        # Only now, so that no work that waits for room takes what becomes free.
        for one in giving_way_to_it:
            self._stop(one)
        return reservation

    def admit_if_room(
        self,
        work_class: WorkClass,
        *,
        inputs: int,
        tokens: int,
        caller: str = "",
        waits_since: float = math.inf,
    ) -> Reservation | None:
        """Accept work that can wait, if there is room for it now; otherwise return None.

        Room is held back for interactive work that has waited for the longest time that a call may
        wait: calls, which are refused and never wait, would else keep it out for ever.

        Args:
            work_class: The class whose limits apply.
            inputs: Number of inputs.
            tokens: Estimated number of tokens.
            caller: The caller it belongs to.
            waits_since: Since when it has waited, as the clock tells.
        """
        is_overdue = self._clock() - waits_since >= self._max_queue_s
        if work_class is WorkClass.INTERACTIVE:
            self._held_back = 0, 0
        if not self._fits(work_class, inputs, tokens):
            if is_overdue and work_class is WorkClass.INTERACTIVE:
                self._held_back = self.ledger.room_of(inputs, tokens)
            return None
        if is_overdue:
            return self.ledger.reserve(work_class, caller, inputs, tokens)
        # Interactive streams wait outside the queue, so that they leave room in it for unary calls.
        limit = self._short_queue
        if work_class is WorkClass.INTERACTIVE and self.ledger.tokens(work_class) > limit:
            ahead = self.ledger.ahead(work_class, caller, tokens, limit=limit)
            if ahead > limit:
                return None
        return self.ledger.reserve(work_class, caller, inputs, tokens)

    def now(self) -> float:
        """Return what the clock tells, in seconds."""
        return self._clock()

    def nobody_waits(self) -> None:
        """Hold no room back for interactive work that waits: there is none."""
        self._held_back = 0, 0

    def admit_always(self) -> Reservation:
        """Accept a health check's single input, however long the queue is."""
        return self.ledger.reserve(WorkClass.INTERACTIVE, "", 1, 1, is_probe=True)

    @property
    def _short_queue(self) -> int:
        return int(_SHORT_QUEUE_BATCHES * self._batch_tokens)

    def _is_long(self, token_s: float) -> bool:
        """Whether the interactive queue is long enough for an overload."""
        ledger = self.ledger
        return ledger.jobs(WorkClass.INTERACTIVE) > _LONG_QUEUE_JOBS and ledger.tokens(
            WorkClass.INTERACTIVE
        ) > max(_LONG_QUEUE_S / token_s, 2 * self._short_queue)

    def _fits(self, work_class: WorkClass, inputs: int, tokens: int) -> bool:
        missing = self._missing(work_class, inputs, tokens)
        # An empty queue accepts anything. A health check, which is one input, must not prevent
        # that where the limits are very small.
        is_empty = self.ledger.inputs(work_class) == self.ledger.probe_inputs(work_class)
        return is_empty or max(missing) <= 0

    def _missing(self, work_class: WorkClass, inputs: int, tokens: int) -> tuple[int, int]:
        """Return how many inputs and tokens are too many with a job; 0 or less if it fits."""
        held, own = self.ledger.room(work_class), self.ledger.room_of(inputs, tokens)
        back = self._held_back if work_class is WorkClass.INTERACTIVE else (0, 0)
        return (
            held[0] + own[0] + back[0] - self._max_inputs,
            held[1] + own[1] + back[1] - self._max_tokens,
        )

    def _giving_way_to(self, caller: str, inputs: int, tokens: int) -> Sequence[Reservation]:
        """Return the jobs that give way to a job, if any."""
        work_class, ledger = WorkClass.INTERACTIVE, self.ledger
        missing_inputs, missing_tokens = self._missing(work_class, inputs, tokens)
        newcomer = giving_way.Newcomer(
            caller,
            inputs=ledger.held_inputs(work_class, caller) + inputs,
            tokens=ledger.held_tokens(work_class, caller) + tokens,
            missing_inputs=missing_inputs,
            missing_tokens=missing_tokens,
        )
        return giving_way.choose(ledger, work_class, newcomer, self._share_of)

    def _share_of(self, caller: str, inputs: int, tokens: int) -> float:
        """Return which part of the queue a caller holds, in units of its weight."""
        share = max(inputs / self._max_inputs, tokens / self._max_tokens)
        return share / self._weights.get(caller, 1.0)

    def _stop(self, reservation: Reservation) -> None:
        """End a job that gives way, and release its room."""
        stop = reservation.stop
        reservation.release_all(SequenceOutcome.REFUSED_FULL)
        if stop is not None:
            stop(
                OverloadedError(
                    "the queue is full, and its caller has more in it than any other: this call"
                    " gave way to another caller's",
                    metadata={"label": "QUEUE_FULL"},
                    retry_delay_s=self.retry_delay_s(),
                )
            )

    def _is_huge(self, inputs: int, tokens: int) -> bool:
        """Whether a call does not fit because of its own size rather than the queue's.

        Such calls do not count as an overload: one caller could otherwise keep it up for all.
        """
        return 2 * inputs > self._max_inputs or 2 * tokens > self._max_tokens

    def _refuse(self, inputs: int, outcome: SequenceOutcome, label: str, message: str) -> NoReturn:
        self.ledger.outcome_counts[WorkClass.INTERACTIVE, outcome] += inputs
        raise OverloadedError(
            message, metadata={"label": label}, retry_delay_s=self.retry_delay_s()
        )

    def seconds(self, tokens: int) -> float:
        """Return the predicted time to run this many interactive tokens, in seconds."""
        share = _INTERACTIVE_SHARE if self.ledger.inputs(WorkClass.BULK) else 1.0
        return tokens / share * self.drain_rate.token_s

    def retry_delay_s(self) -> float:
        """Return when a refused caller should retry, with jitter so that retries spread out."""
        delay_s = min(
            max(self.seconds(self.ledger.tokens(WorkClass.INTERACTIVE)), _RETRY_DELAY_MIN_S),
            _RETRY_DELAY_MAX_S,
        )
        return delay_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter is no secret
