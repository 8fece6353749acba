"""Plans of when calls are sent."""

import itertools
import random


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Plans calls that come independently of each other, as those of many clients do.

    Args:
        rate_per_s: How many come in a second on average.
        seconds: Length of the window.
        seed: The same seed gives the same plan.

    Returns:
        Times within the window, ascending.
    """
    chooser = random.Random(seed)  # noqa: S311 - arrivals, not secrets
    gaps_s = (chooser.expovariate(rate_per_s) for _ in itertools.count())
    return list(itertools.takewhile(lambda at_s: at_s < seconds, itertools.accumulate(gaps_s)))


def steady(interval_s: float, seconds: float) -> list[float]:
    """Plans calls at equal distances."""
    return [number * interval_s for number in range(round(seconds / interval_s))]
