"""The load of a server: calls at planned times, and streams that keep messages in flight."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embedgrpc.engine.work_class import WorkClass

# Returns the number of tokens of one text.
Lengths = Callable[[random.Random], int]

_SHORTEST = 8
_LONGEST = 512
_SAMPLE = 20_000


class Arrival(NamedTuple):
    """A call.

    Attributes:
        at_s: The time of its arrival.
        lengths: The tokens of each of its texts.
        caller: The name of its caller.
        work_class: Its class of work.
        deadline_s: The longest time that the caller waits.
    """

    at_s: float
    lengths: tuple[int, ...]
    caller: str = ""
    work_class: WorkClass = WorkClass.INTERACTIVE
    deadline_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Stream:
    """Bulk work: the next message is sent when an earlier one has its results.

    Attributes:
        caller: The name of its caller.
        window: The number of messages in flight.
        messages: The tokens of each text of each message. They repeat without end.
    """

    caller: str
    window: int
    messages: Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Trace:
    """The whole load of a server, the same for every policy.

    Attributes:
        seconds: Its length.
        arrivals: The calls, by ascending time.
        streams: The streams.
    """

    seconds: float
    arrivals: Sequence[Arrival]
    streams: Sequence[Stream] = ()

    @property
    def tokens_by_caller(self) -> dict[str, float]:
        """The tokens that each caller wants to send; infinite for streams."""
        tokens: dict[str, float] = dict.fromkeys((one.caller for one in self.streams), math.inf)
        for one in self.arrivals:
            tokens[one.caller] = tokens.get(one.caller, 0) + sum(one.lengths)
        return tokens


def chooser(seed: int, purpose: str) -> random.Random:
    """Return a source of random numbers for one purpose, independent of others."""
    return random.Random(f"{seed} {purpose}")  # noqa: S311 - arrivals, not secrets


def log_normal(
    median: float, sigma: float, *, shortest: int = _SHORTEST, longest: int = _LONGEST
) -> Lengths:
    """Return lengths like those of texts that people write: most short, some very long."""
    return lambda source: _clipped(median * math.exp(sigma * source.gauss()), shortest, longest)


def zipf(exponent: float, *, shortest: int = _SHORTEST, longest: int = _LONGEST) -> Lengths:
    """Return lengths of which twice as long ones are 2 ** exponent times as rare."""
    return lambda source: _clipped(
        shortest * (1 - source.random()) ** (-1 / exponent), shortest, longest
    )


def _clipped(length: float, shortest: int, longest: int) -> int:
    return min(max(round(length), shortest), longest)


def mean_length(lengths: Lengths) -> float:
    """Return the mean of the lengths."""
    source = chooser(0, "mean")
    return sum(lengths(source) for _ in range(_SAMPLE)) / _SAMPLE


def bursts(
    rate_per_s: float, seconds: float, *, on_s: float, off_s: float, source: random.Random
) -> list[float]:
    """Return the times of calls in bursts, ascending: a Markov-modulated Poisson process.

    Args:
        rate_per_s: The mean rate in calls a second, pauses included.
        seconds: The length of the window.
        on_s: The mean length of a burst.
        off_s: The mean length of a pause, without calls.
        source: The source of random numbers.
    """
    burst_per_s = rate_per_s * (on_s + off_s) / on_s
    times: list[float] = []
    # Start in a burst as often as at any other time.
    is_on = source.random() * (on_s + off_s) < on_s
    at_s = 0.0
    while at_s < seconds:
        end_s = min(at_s + source.expovariate(1 / (on_s if is_on else off_s)), seconds)
        if is_on:
            while (at_s := at_s + source.expovariate(burst_per_s)) < end_s:
                times.append(at_s)
        at_s, is_on = end_s, not is_on
    return times
