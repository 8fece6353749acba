"""Decides what is taken in, so that everything behind it is bounded.

Interactive work is refused when it would not be done in time, or when there is no room for it;
bulk work waits for room, which stops its stream from reading. How long a call may wait depends on
what made the queue long. A burst after a quiet time may fill the queue up to a bound in seconds:
all of it will be answered. In an overload, when more comes than can be answered for longer than a
moment, waiting only makes answers late: then calls are let in only while the queue is short.

What counts is the work ahead of a call, not all that waits: callers have turns, and so have the
jobs of one caller, so that a short call waits neither for the whole of a long one nor for all the
calls of somebody who sends too many.

Source: the queue of two lengths is CoDel's idea as Facebook uses it for servers ("Fail at Scale",
2015); refusing early and cheaply, "Site Reliability Engineering", chapter 21.
"""

import random
import time
from collections.abc import Callable
from typing import NoReturn

from embedgrpc.engine.admission.drain_rate import DrainRate
from embedgrpc.engine.admission.ledger import Ledger, Reservation
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.admission.overload import OverloadDetector
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.work_class import WorkClass

# A token of English text has about four bytes, of Chinese three to six. Too high a guess would
# refuse work that there is room for, so this leans towards the former; the true count replaces it
# as soon as it is known. Bytes, because they are known without looking at the texts.
_BYTES_PER_TOKEN = 4
_RETRY_DELAY_MIN_S = 0.1
_RETRY_DELAY_MAX_S = 30.0
# Overloaded, calls are let in while this many batches, and as much as their own, are ahead: one
# runs, and half of the next waits. With more, calls wait longer, and no more are answered.
_SHORT_QUEUE_BATCHES = 1.5
# A long call may wait for so many times its own work.
_PATIENCE = 4
# A queue is long when it takes longer than this, and holds more jobs than this: callers who send
# the next call when the last one is answered keep a queue as long as there are callers, and no
# overload ever comes of it.
_LONG_QUEUE_S = 1.0
_LONG_QUEUE_JOBS = 32
# How long a full batch takes, until some were run. Most models that run where they should take
# less; too high a guess would refuse work that could be done.
_GUESSED_BATCH_S = 0.05
# Bulk work that waits gets one batch of five.
_INTERACTIVE_SHARE = 0.8


def estimate_tokens(size_bytes: int, inputs: int, max_tokens: int) -> int:
    """Guesses how many tokens some texts have, before they are tokenized."""
    return min(size_bytes // _BYTES_PER_TOKEN + 2 * inputs, max_tokens * inputs)


class Admission:
    """Takes work for one model in, or refuses it.

    Each class has bounds of its own, so that neither can fill the other's.

    Args:
        max_inputs: The most inputs of a class.
        max_tokens: The most tokens of a class, estimated until they are counted.
        batch_tokens: The tokens of a full batch.
        max_queue_s: The longest that an interactive call may wait, in seconds, as predicted.
        clock: Tells the time, in seconds.

    Attributes:
        ledger: Counts what was taken in, and what became of it.
        drain_rate: Is told of every batch.
    """

    def __init__(
        self,
        *,
        max_inputs: int,
        max_tokens: int,
        batch_tokens: int,
        max_queue_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = Ledger()
        self.drain_rate = DrainRate(_GUESSED_BATCH_S / batch_tokens)
        self._max_inputs = max_inputs
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self._max_queue_s = max_queue_s
        self._clock = clock
        self._overload = OverloadDetector()

    @property
    def inputs(self) -> int:
        """Inputs of both classes that take room now."""
        return sum(self.ledger.inputs(work_class) for work_class in WorkClass)

    def set_batch_tokens(self, tokens: int) -> None:
        """Tells how many tokens a full batch has. From any thread."""
        self._batch_tokens = tokens

    def admit(
        self, *, inputs: int, tokens: int, remaining_s: float, caller: str = ""
    ) -> Reservation:
        """Takes in interactive work, or refuses it.

        Args:
            inputs: How many inputs.
            tokens: How many tokens they probably have.
            remaining_s: Time left until the call's deadline.
            caller: Whose they are.

        Returns:
            The room it takes.

        Raises:
            OverloadedError: There is no room, or it would not be done in the time that it has.
        """
        now = self._clock()
        token_s = self.seconds(1)
        is_long = self._is_long(token_s)
        overloaded = self._overload.arrive(
            now,
            is_long=is_long,
            done=self.ledger.estimated_tokens_done(WorkClass.INTERACTIVE),
        )
        if not self._fits(WorkClass.INTERACTIVE, inputs, tokens):
            if is_long and not self._is_huge(inputs, tokens):
                self._overload.refuse(now, tokens)
            self._refuse(
                inputs,
                SequenceOutcome.REFUSED_FULL,
                "queue_full",
                f"{self.ledger.inputs(WorkClass.INTERACTIVE)} inputs wait already, with about"
                f" {self.ledger.tokens(WorkClass.INTERACTIVE)} tokens; the limits are"
                f" {self._max_inputs} and {self._max_tokens}",
            )
        if overloaded:
            limit: float = self._short_queue + tokens
        else:
            limit = max(self._max_queue_s / token_s, self._short_queue, _PATIENCE * tokens)
        in_time = remaining_s / token_s - tokens
        # No more than all that waits can be ahead: as a rule nothing needs to be summed up.
        ahead = self.ledger.tokens(WorkClass.INTERACTIVE)
        if ahead > min(limit, in_time):
            most = max(min(limit, in_time), 0)
            ahead = self.ledger.ahead(WorkClass.INTERACTIVE, caller, tokens, limit=most)
        # With nothing ahead it is tried: else a wrong guess of the rate would never be corrected.
        if ahead and ahead > in_time:
            self._refuse(
                inputs,
                SequenceOutcome.REFUSED_LATE,
                "deadline_unreachable",
                f"this would take {(ahead + tokens) * token_s:.2f} s or more, and the call has"
                f" {remaining_s:.2f} s",
            )
        if ahead > limit:
            self._overload.refuse(now, tokens)
            # The same for calls of all lengths: then the answer is put together once.
            if overloaded:
                self._refuse(
                    inputs,
                    SequenceOutcome.REFUSED_OVERLOADED,
                    "overloaded",
                    f"more than {self._short_queue} tokens, and as many as its own, are ahead of"
                    " this call, which is the limit until the overload is over",
                )
            self._refuse(
                inputs,
                SequenceOutcome.REFUSED_FULL,
                "queue_full",
                f"the work ahead of this call takes longer than {self._max_queue_s:g} s, and"
                f" {_PATIENCE} times as long as its own, which is the limit",
            )
        self._overload.let_in(tokens)
        return self.ledger.reserve(WorkClass.INTERACTIVE, caller, inputs, tokens)

    def admit_if_room(
        self, work_class: WorkClass, *, inputs: int, tokens: int, caller: str = ""
    ) -> Reservation | None:
        """Takes in work that can wait, if there is room for it now."""
        if not self._fits(work_class, inputs, tokens):
            return None
        # Streams that hurry must not fill the queue up for calls, which cannot wait at the door.
        limit = self._short_queue
        if work_class is WorkClass.INTERACTIVE and self.ledger.tokens(work_class) > limit:
            ahead = self.ledger.ahead(work_class, caller, tokens, limit=limit)
            if ahead > limit:
                return None
        return self.ledger.reserve(work_class, caller, inputs, tokens)

    def admit_always(self) -> Reservation:
        """Takes in a health check's single input, whatever else waits."""
        return self.ledger.reserve(WorkClass.INTERACTIVE, "", 1, 1, is_probe=True)

    @property
    def _short_queue(self) -> int:
        return int(_SHORT_QUEUE_BATCHES * self._batch_tokens)

    def _is_long(self, token_s: float) -> bool:
        """Whether the interactive queue is long enough to be an overload's."""
        ledger = self.ledger
        return ledger.jobs(WorkClass.INTERACTIVE) > _LONG_QUEUE_JOBS and ledger.tokens(
            WorkClass.INTERACTIVE
        ) > max(_LONG_QUEUE_S / token_s, 2 * self._short_queue)

    def _fits(self, work_class: WorkClass, inputs: int, tokens: int) -> bool:
        # An empty queue takes anything, else a job larger than the bounds would never run; and a
        # health check, which is one input, must not keep it out.
        return self.ledger.inputs(work_class) == self.ledger.probe_inputs(work_class) or (
            self.ledger.inputs(work_class) + inputs <= self._max_inputs
            and self.ledger.tokens(work_class) + tokens <= self._max_tokens
        )

    def _is_huge(self, inputs: int, tokens: int) -> bool:
        """Whether a call that does not fit is to blame for that itself, rather than the queue.

        Else a caller whose calls fit into no queue would keep all others in an overload.
        """
        return 2 * inputs > self._max_inputs or 2 * tokens > self._max_tokens

    def _refuse(self, inputs: int, fate: SequenceOutcome, label: str, message: str) -> NoReturn:
        self.ledger.outcome_counts[WorkClass.INTERACTIVE, fate] += inputs
        raise OverloadedError(
            message, metadata={"label": label}, retry_delay_s=self.retry_delay_s()
        )

    def seconds(self, tokens: int) -> float:
        """Predicts how long it takes to run so many interactive tokens, in seconds."""
        share = _INTERACTIVE_SHARE if self.ledger.inputs(WorkClass.BULK) else 1.0
        return tokens / share * self.drain_rate.token_s

    def retry_delay_s(self) -> float:
        """When a refused caller should try again, spread so that not all come back at once."""
        delay_s = min(
            max(self.seconds(self.ledger.tokens(WorkClass.INTERACTIVE)), _RETRY_DELAY_MIN_S),
            _RETRY_DELAY_MAX_S,
        )
        return delay_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter is no secret
