"""What comes to a server: calls at planned times, and streams that keep some work in flight."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embedgrpc.engine.work_class import WorkClass

# Gives the tokens of one text.
Lengths = Callable[[random.Random], int]

_SHORTEST = 8
_LONGEST = 512
_SAMPLE = 20_000


class Arrival(NamedTuple):
    """A call that comes.

    Attributes:
        at_s: When.
        lengths: The tokens of each of its texts.
        caller: Whose it is.
        work_class: How soon the answer is needed.
        deadline_s: How long the caller waits.
    """

    at_s: float
    lengths: tuple[int, ...]
    caller: str = ""
    work_class: WorkClass = WorkClass.INTERACTIVE
    deadline_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Stream:
    """Bulk work of which the next message is sent when one is answered.

    Attributes:
        caller: Whose it is.
        window: How many messages are in flight.
        messages: The tokens of each text of each message; after the last the first comes again.
    """

    caller: str
    window: int
    messages: Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Trace:
    """All that comes to a server; the same for every policy.

    Attributes:
        seconds: How long it comes.
        arrivals: Calls that come at planned times, ascending.
        streams: Work that comes as fast as it is done.
    """

    seconds: float
    arrivals: Sequence[Arrival]
    streams: Sequence[Stream] = ()

    @property
    def tokens_by_caller(self) -> dict[str, float]:
        """Tokens that each caller sends if it can; without end for streams."""
        tokens: dict[str, float] = dict.fromkeys((one.caller for one in self.streams), math.inf)
        for one in self.arrivals:
            tokens[one.caller] = tokens.get(one.caller, 0) + sum(one.lengths)
        return tokens


def chooser(seed: int, purpose: str) -> random.Random:
    """Makes a source of numbers that depends on no other."""
    return random.Random(f"{seed} {purpose}")  # noqa: S311 - arrivals, not secrets


def log_normal(
    median: float, sigma: float, *, shortest: int = _SHORTEST, longest: int = _LONGEST
) -> Lengths:
    """Lengths as those of texts that people write: most are short, and some are very long."""
    return lambda source: _clipped(median * math.exp(sigma * source.gauss()), shortest, longest)


def zipf(exponent: float, *, shortest: int = _SHORTEST, longest: int = _LONGEST) -> Lengths:
    """Lengths of which twice as long ones are 2 ** exponent times as rare."""
    return lambda source: _clipped(
        shortest * (1 - source.random()) ** (-1 / exponent), shortest, longest
    )


def _clipped(length: float, shortest: int, longest: int) -> int:
    return min(max(round(length), shortest), longest)


def mean_length(lengths: Lengths) -> float:
    """Returns what lengths come to on average."""
    source = chooser(0, "mean")
    return sum(lengths(source) for _ in range(_SAMPLE)) / _SAMPLE


def bursts(
    rate_per_s: float, seconds: float, *, on_s: float, off_s: float, source: random.Random
) -> list[float]:
    """Plans calls that come in bursts, and none between them: a Markov-modulated process.

    Args:
        rate_per_s: How many come in a second on average, pauses included.
        seconds: Length of the window.
        on_s: How long a burst lasts on average.
        off_s: The same of a pause.
        source: Where chance comes from.

    Returns:
        Times within the window, ascending.
    """
    burst_per_s = rate_per_s * (on_s + off_s) / on_s
    times: list[float] = []
    # At first it is a burst as often as at any other time.
    is_on = source.random() * (on_s + off_s) < on_s
    at_s = 0.0
    while at_s < seconds:
        end_s = min(at_s + source.expovariate(1 / (on_s if is_on else off_s)), seconds)
        if is_on:
            while (at_s := at_s + source.expovariate(burst_per_s)) < end_s:
                times.append(at_s)
        at_s, is_on = end_s, not is_on
    return times
