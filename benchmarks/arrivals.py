"""Arrival times of calls."""

import itertools
import random


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Return the times of independent calls, like those of many clients, ascending.

    Args:
        rate_per_s: The mean rate, in calls a second.
        seconds: The length of the window.
        seed: The same seed returns the same times.
    """
    chooser = random.Random(seed)  # noqa: S311 - arrivals, not secrets
    gaps_s = (chooser.expovariate(rate_per_s) for _ in itertools.count())
    return list(itertools.takewhile(lambda at_s: at_s < seconds, itertools.accumulate(gaps_s)))


def steady(interval_s: float, seconds: float) -> list[float]:
    """Return times at equal distances."""
    return [number * interval_s for number in range(round(seconds / interval_s))]
