"""Measures what batches of a model cost on this machine, and chooses from it how large they are.

A batch costs something for being one, and something for each of its padded tokens. The larger it
is, the less the former matters, and the longer everybody waits for it. The budget is where being
a batch is a sixteenth of the cost: beyond that there is next to nothing to gain. Nor does a batch
take longer than everybody is to wait, where that does not make it very small.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedgrpc.engine.scheduling.batching import BatchBudget

# The part of a full batch's time that it takes for being a batch.
_OVERHEAD_SHARE = 0.06
# The longest that a batch is to take: what is measured while the machine is busy with something
# else may ask for batches of a multiple.
_BATCH_S_MAX = 0.05
# The part of a bulk batch's time at most, however short it has to be.
_SHARED_OVERHEAD_SHARE = 0.2
_LENGTH = 64
_SMALLEST_TOKENS = 64
_LARGEST_TOKENS = 65_536
# The best of so many runs counts, for others may have been held up; small ones, which are held up
# more easily, are run for so long.
_REPEATS = 3
_REPEAT_S = 0.03
# A machine that is busy with something else may make it look as if there were no cost in being a
# batch: smaller budgets than this have not been seen to serve anybody.
_SMALLEST_BUDGET_TOKENS = 512
# Likewise: without overhead, every length would get batches of its own.
_SMALLEST_OVERHEAD_TOKENS = 16
# How much larger than the largest batch that was measured a budget may be.
_EXTRAPOLATION = 4
# Budgets are multiples of it, so that small deviations do not show.
_STEP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a batch costs.

    Attributes:
        batch_s: Seconds for being a batch.
        token_s: Seconds for each padded token.
        largest_tokens: The largest batch that was measured, in padded tokens.
    """

    batch_s: float
    token_s: float
    largest_tokens: int

    def seconds(self, tokens: int) -> float:
        """Tells how long a batch of so many padded tokens takes."""
        return self.batch_s + self.token_s * tokens

    def tokens_within(self, seconds: float) -> int:
        """Tells how many padded tokens a batch may have that takes so long."""
        return max(int((seconds - self.batch_s) / self.token_s), 0)

    @property
    def knee_tokens(self) -> int:
        """The padded tokens of a batch beyond which larger ones hardly run faster, or too long."""
        knee = _rounded(self.batch_s / self.token_s / _OVERHEAD_SHARE)
        return max(min(knee, _rounded(self.tokens_within(_BATCH_S_MAX))), _SMALLEST_BUDGET_TOKENS)

    def budget(self, *, tokens: int, sequences: int, bulk_batch_s: float) -> BatchBudget:
        """Chooses what a batch may cost.

        Args:
            tokens: The most padded tokens, as it was set; 0 to choose.
            sequences: The most sequences.
            bulk_batch_s: The longest that a bulk batch is to take while interactive calls come,
                where that does not waste too much on being a batch.
        """
        overhead_tokens = max(self.batch_s / self.token_s, _SMALLEST_OVERHEAD_TOKENS)
        limit = max(_EXTRAPOLATION * self.largest_tokens, _SMALLEST_BUDGET_TOKENS)
        chosen = tokens or min(self.knee_tokens, limit)
        shared = max(
            self.tokens_within(bulk_batch_s), _rounded(overhead_tokens / _SHARED_OVERHEAD_SHARE)
        )
        return BatchBudget(
            tokens=chosen,
            sequences=sequences,
            overhead_tokens=round(overhead_tokens),
            shared_tokens=min(shared, chosen),
        )


def _rounded(tokens: float) -> int:
    return max(round(tokens / _STEP_TOKENS), 1) * _STEP_TOKENS


def fit(measured: Sequence[tuple[int, float]]) -> CostModel:
    """Fits a cost model, so that the relative errors are least.

    Args:
        measured: Padded tokens and seconds of batches, at least two of different sizes.
    """
    tokens = np.array([one for one, _ in measured], np.float64)
    seconds = np.array([one for _, one in measured], np.float64)
    design = np.stack([np.ones_like(tokens), tokens], axis=1) / seconds[:, np.newaxis]
    (batch_s, token_s), *_ = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)
    largest = int(tokens.max())
    # Noise may make larger batches look free, or small ones cheaper than nothing.
    token_s = max(float(token_s), float(seconds.min()) / largest / 16)
    return CostModel(max(float(batch_s), 0.0), token_s, largest)


def calibrate(
    run: Callable[[int, int], float],
    *,
    max_tokens: int,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> CostModel:
    """Measures batches of growing size, until larger ones would gain nothing.

    Args:
        run: Runs a batch of so many sequences of so many tokens; returns the seconds it took.
        max_tokens: The longest sequence that the model reads.
        limit_s: How long all of it may take; the two smallest sizes are measured all the same.
        clock: Tells the time, in seconds.

    Returns:
        What batches cost.
    """
    length = min(_LENGTH, max_tokens)
    began = clock()
    measured: list[tuple[int, float]] = []
    tokens = _SMALLEST_TOKENS
    run(1, length)
    while tokens <= _LARGEST_TOKENS:
        sequences = -(-tokens // length)
        best = _best(run, sequences, length)
        measured.append((sequences * length, best))
        tokens *= 2
        # The next takes about twice as long as this one.
        next_s = 2 * best * _REPEATS
        enough = len(measured) > 2 and fit(measured).knee_tokens <= measured[-1][0]  # noqa: PLR2004 - a line needs two points, and noise a third
        if enough or (len(measured) > 1 and clock() - began + next_s > limit_s):
            break
    if 2 * (clock() - began) <= limit_s:
        # Once more, for something else may have kept the machine busy during the small ones alone,
        # which makes being a batch look dear.
        measured = [
            (size, min(taken, _best(run, size // length, length))) for size, taken in measured
        ]
    return fit(measured)


def _best(run: Callable[[int, int], float], sequences: int, length: int) -> float:
    """Returns the least of the times that some runs of a batch took."""
    taken: list[float] = []
    while len(taken) < _REPEATS or sum(taken) < _REPEAT_S:
        taken.append(run(sequences, length))
    return min(taken)
