"""Decides what is taken in, so that everything behind it is bounded."""

import asyncio
import random
import threading

from embedgrpc.engine.errors import OverloadedError

# A token of English text has about four characters; of Chinese, one or two. Too high a
# guess would refuse work that there is room for, so this leans towards the former; the true
# count replaces it as soon as it is known.
_CHARACTERS_PER_TOKEN = 4
_RETRY_DELAY_MIN_S = 0.1
_RETRY_DELAY_MAX_S = 30.0
# Weight of the newest batch in the moving average of the drain rate.
_RATE_WEIGHT = 0.1


def estimate_tokens(characters: int, inputs: int, max_tokens: int) -> int:
    """Guesses how many tokens some texts have, before they are tokenized."""
    return min(characters // _CHARACTERS_PER_TOKEN + 2 * inputs, max_tokens * inputs)


class Reservation:
    """Room taken by one job.

    Attributes:
        inputs: Inputs that still take room.
        tokens: Tokens that still take room.
    """

    __slots__ = ("_admission", "bulk", "inputs", "tokens")

    def __init__(self, admission: "Admission", *, bulk: bool, inputs: int, tokens: int) -> None:
        self._admission = admission
        self.bulk = bulk
        self.inputs = inputs
        self.tokens = tokens

    def settle(self, tokens: int) -> None:
        """Replaces the estimate by the true number of tokens. From any thread."""
        self._admission.settle(self, tokens)

    def release(self, inputs: int, tokens: int) -> None:
        """Gives back the room of inputs that are answered. On the event loop."""
        self._admission.release(self, inputs, tokens)

    def release_all(self) -> None:
        """Gives back all that is left; harmless when nothing is. On the event loop."""
        self._admission.release(self, self.inputs, self.tokens)


class Admission:
    """Counts inputs and tokens that are queued or running for one model.

    Interactive work beyond the bounds is refused at once; bulk work waits its turn, which
    stops its stream from reading. Each class has bounds of its own, so that neither can fill
    the other's.

    Args:
        max_inputs: The most inputs of a class.
        max_tokens: The most tokens of a class, estimated until they are counted.
    """

    def __init__(self, *, max_inputs: int, max_tokens: int) -> None:
        self._max_inputs = max_inputs
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._inputs = {False: 0, True: 0}
        self._tokens = {False: 0, True: 0}
        # A lock of asyncio is fair: whoever holds it is the first of those that wait for room.
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._tokens_per_s = 0.0

    @property
    def inputs(self) -> int:
        """Inputs of both classes that take room now."""
        return self._inputs[False] + self._inputs[True]

    def admit(self, *, inputs: int, tokens: int, remaining_s: float) -> Reservation:
        """Takes in interactive work, or refuses it.

        Args:
            inputs: How many inputs.
            tokens: How many tokens they probably have.
            remaining_s: Time left until the call's deadline.

        Returns:
            The room it takes.

        Raises:
            OverloadedError: There is no room, or the work ahead takes longer than the call
                has time.
        """
        wait_s = self.wait_s()
        if wait_s > remaining_s:
            raise OverloadedError(
                f"the work ahead takes about {wait_s:.2f} s, and the call has {remaining_s:.2f} s",
                metadata={"label": "deadline_unreachable"},
                retry_delay_s=self.retry_delay_s(),
            )
        if not self._fits(inputs, tokens, bulk=False):
            raise OverloadedError(
                f"{self._inputs[False]} inputs with about {self._tokens[False]} tokens wait "
                f"already; the limits are {self._max_inputs} and {self._max_tokens}",
                metadata={"label": "queue_full"},
                retry_delay_s=self.retry_delay_s(),
            )
        return self._reserve(inputs, tokens, bulk=False)

    async def admit_bulk(self, *, inputs: int, tokens: int) -> Reservation:
        """Takes in bulk work as soon as there is room, first come, first served."""
        async with self._turn:
            while not self._fits(inputs, tokens, bulk=True):
                self._room.clear()
                await self._room.wait()
            return self._reserve(inputs, tokens, bulk=True)

    def admit_always(self) -> Reservation:
        """Takes in a health check's single input, whatever else waits."""
        return self._reserve(1, 1, bulk=False)

    def _fits(self, inputs: int, tokens: int, *, bulk: bool) -> bool:
        # An empty queue takes anything, else a job larger than the bounds would never run.
        return self._inputs[bulk] == 0 or (
            self._inputs[bulk] + inputs <= self._max_inputs
            and self._tokens[bulk] + tokens <= self._max_tokens
        )

    def _reserve(self, inputs: int, tokens: int, *, bulk: bool) -> Reservation:
        with self._lock:
            self._inputs[bulk] += inputs
            self._tokens[bulk] += tokens
        return Reservation(self, bulk=bulk, inputs=inputs, tokens=tokens)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Replaces a guess by the truth, unless the room was given back. From any thread."""
        with self._lock:
            if reservation.inputs:
                self._tokens[reservation.bulk] += tokens - reservation.tokens
                reservation.tokens = tokens

    def release(self, reservation: Reservation, inputs: int, tokens: int) -> None:
        """Takes room back and lets waiting bulk work look at it. On the event loop."""
        with self._lock:
            inputs = min(inputs, reservation.inputs)
            # The last input takes what is left of the tokens: of inputs that could not be
            # tokenized they were only guessed.
            if inputs == reservation.inputs:
                tokens = reservation.tokens
            tokens = min(tokens, reservation.tokens)
            reservation.inputs -= inputs
            reservation.tokens -= tokens
            self._inputs[reservation.bulk] -= inputs
            self._tokens[reservation.bulk] -= tokens
        self._room.set()

    def drained(self, tokens: int, seconds: float) -> None:
        """Learns the drain rate from a batch that was run. From any thread."""
        rate = tokens / max(seconds, 1e-6)
        with self._lock:
            old = self._tokens_per_s
            self._tokens_per_s = rate if old == 0 else old + _RATE_WEIGHT * (rate - old)

    def wait_s(self) -> float:
        """Predicts how long interactive work taken in now would wait. 0 before any batch."""
        if self._tokens_per_s == 0:
            return 0.0
        return self._tokens[False] / self._tokens_per_s

    def retry_delay_s(self) -> float:
        """When a refused caller should try again, spread so that not all come back at once."""
        delay_s = min(max(self.wait_s(), _RETRY_DELAY_MIN_S), _RETRY_DELAY_MAX_S)
        return delay_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter is no secret
