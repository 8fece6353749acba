"""The results of a trace under one policy."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from benchmarks.figures import percentile
from benchmarks.traces import Arrival
from embedgrpc.engine.scheduling.dispatch import Batch
from embedgrpc.engine.work_class import WorkClass


class Ending(Enum):
    """The end of a call."""

    ANSWERED = auto()
    REFUSED = auto()
    EXPIRED = auto()


@dataclass(frozen=True, slots=True)
class Service:
    """The service that one caller had.

    Attributes:
        texts_per_s: The texts that ran, in a second.
        tokens_per_s: Their tokens, in a second.
        p99_s: The latency of its successful calls.
    """

    texts_per_s: float
    tokens_per_s: float
    p99_s: float


class Record:
    """Counts calls and batches, and sums them up.

    Counts the batches from `begin_s` to `end_s`, since the queue fills at first, and the calls that
    arrived in that time, however long they took.

    Args:
        begin_s: The start of the counted time.
        end_s: Its end.

    Attributes:
        arrivals: All calls, at any time.
        endings: The ends of calls, at any time.
        texts_run: The texts that ran, at any time.
        batches_run: The batches that ran, at any time.
    """

    def __init__(self, begin_s: float, end_s: float) -> None:
        self.arrivals = 0
        self.endings: Counter[Ending] = Counter()
        self.texts_run = 0
        self.batches_run = 0
        self._begin_s = begin_s
        self._end_s = end_s
        self._calls: Counter[Ending] = Counter()
        self._answered_in_time = 0
        self._latencies_s: dict[tuple[WorkClass, str], list[float]] = {}
        self._batches = 0
        self._sequences = 0
        self._tokens = 0
        self._padded_tokens = 0
        self._texts_of: Counter[tuple[WorkClass, str]] = Counter()
        self._tokens_of: Counter[tuple[WorkClass, str]] = Counter()

    @property
    def _seconds(self) -> float:
        return self._end_s - self._begin_s

    def arrived(self) -> None:
        """Count a call that arrives."""
        self.arrivals += 1

    def ended(self, arrival: Arrival, now: float, ending: Ending) -> None:
        """Count a call that ends."""
        self.endings[ending] += 1
        if (
            ending is Ending.ANSWERED
            and arrival.work_class is WorkClass.INTERACTIVE
            and self._begin_s <= now < self._end_s
        ):
            self._answered_in_time += 1
        if self._begin_s <= arrival.at_s < self._end_s:
            self._calls[ending] += 1
            if ending is Ending.ANSWERED:
                key = arrival.work_class, arrival.caller
                self._latencies_s.setdefault(key, []).append(now - arrival.at_s)

    def ran(self, batch: Batch, now: float) -> None:
        """Count a batch that ran."""
        self.texts_run += len(batch.entries)
        self.batches_run += 1
        if not self._begin_s <= now < self._end_s:
            return
        lengths = [entry[0].tokens for entry in batch.entries]
        self._batches += 1
        self._tokens += sum(lengths)
        self._padded_tokens += len(lengths) * max(lengths)
        self._sequences += len(lengths)
        for entry in batch.entries:
            call = entry[0].job.call
            self._texts_of[call.work_class, call.caller] += 1
            self._tokens_of[call.work_class, call.caller] += entry[0].tokens

    @property
    def tokens_per_s(self) -> float:
        """The tokens that ran in a second, without padding."""
        return self._tokens / self._seconds

    @property
    def texts_per_s(self) -> float:
        """The texts that ran in a second."""
        return self._sequences / self._seconds

    @property
    def real_share(self) -> float:
        """The real tokens, over the computed ones."""
        return _ratio(self._tokens, self._padded_tokens)

    @property
    def texts_a_batch(self) -> float:
        """The mean number of texts in a batch."""
        return _ratio(self._sequences, self._batches)

    def share(self, ending: Ending) -> float:
        """Return the share of the calls that ended in this way."""
        return _ratio(self._calls[ending], self._calls.total())

    def latency_s(self, percent: int) -> float:
        """Return a percentile of the latency of successful interactive calls."""
        return percentile(self._interactive_s, percent)

    @property
    def mean_latency_s(self) -> float:
        """The mean latency of successful interactive calls."""
        return _ratio(sum(self._interactive_s), len(self._interactive_s))

    @property
    def goodput_per_s(self) -> float:
        """The interactive calls that succeeded in a second."""
        return self._answered_in_time / self._seconds

    @property
    def _interactive_s(self) -> list[float]:
        return [
            one
            for (work_class, _), latencies_s in self._latencies_s.items()
            if work_class is WorkClass.INTERACTIVE
            for one in latencies_s
        ]

    @property
    def bulk_texts_per_s(self) -> float:
        """The texts of bulk work that ran in a second."""
        texts = (
            count
            for (work_class, _), count in self._texts_of.items()
            if work_class is WorkClass.BULK
        )
        return sum(texts) / self._seconds

    def service(self, caller: str) -> Service:
        """Return the service of a caller, over all classes."""
        keys = [(work_class, caller) for work_class in WorkClass]
        latencies_s = [one for key in keys for one in self._latencies_s.get(key, ())]
        return Service(
            sum(self._texts_of[key] for key in keys) / self._seconds,
            sum(self._tokens_of[key] for key in keys) / self._seconds,
            percentile(latencies_s, 99),
        )

    def jain(self, callers: frozenset[str]) -> float:
        """Return Jain's fairness index of n callers: from 1 / n (all to one) to 1 (equal).

        Source: Jain, Chiu and Hawe, "A Quantitative Measure of Fairness", 1984.
        """
        shares = [self.service(one).tokens_per_s for one in callers]
        squares = sum(share**2 for share in shares)
        return _ratio(sum(shares) ** 2, len(shares) * squares)


def backlogged(demands: Mapping[str, float], capacity: float) -> frozenset[str]:
    """Return the callers that want more than their fair share of the capacity."""
    left = capacity
    wanting = sorted(demands, key=lambda name: demands[name])
    while wanting and demands[wanting[0]] <= left / len(wanting):
        left -= demands[wanting.pop(0)]
    return frozenset(wanting)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
