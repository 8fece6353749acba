"""The scenarios of the simulation, each a trace of calls."""

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks import arrivals
from benchmarks.simulated_machine import CostModel
from benchmarks.traces import (
    Arrival,
    Lengths,
    Stream,
    Trace,
    bursts,
    chooser,
    log_normal,
    mean_length,
    zipf,
)

_TEXTS = log_normal(48, 1.0)
_QUERIES = log_normal(14, 0.5, longest=64)
_HEAVY = zipf(0.7)
_CROWD = 100
_CROWD_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Offer:
    """The size of a load.

    Attributes:
        tokens_per_s: The tokens of the planned calls, in a second.
        seconds: Its length.
        seed: The same seed returns the same trace.
    """

    tokens_per_s: float
    seconds: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load, and the machine and settings for it.

    Attributes:
        what: Its description for people.
        load: The tokens of the planned calls, in percent of the capacity of the machine.
        trace: Makes the trace.
        seconds: The length of the trace.
        cost: The cost of batches; None for that of the command.
        lanes: The number of batches that run at once; the server's default on a CPU is two.
        processors: The number of lanes that run at full speed.
        settings: The settings of the server that differ from the defaults.
    """

    what: str
    load: int
    trace: Callable[[Offer], Trace]
    seconds: float = 120
    cost: CostModel | None = None
    lanes: int = 2
    processors: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


def _calls(
    times: Iterable[float],
    lengths: Lengths,
    source: random.Random,
    *,
    caller: str = "",
    texts: Lengths = lambda _: 1,
) -> list[Arrival]:
    return [
        Arrival(at_s, tuple(lengths(source) for _ in range(texts(source))), caller)
        for at_s in times
    ]


def _poisson(offer: Offer) -> Trace:
    rate_per_s = offer.tokens_per_s / mean_length(_TEXTS)
    times = arrivals.poisson(rate_per_s, offer.seconds, offer.seed)
    return Trace(offer.seconds, _calls(times, _TEXTS, chooser(offer.seed, "texts")))


def _bursts(offer: Offer) -> Trace:
    rate_per_s = offer.tokens_per_s / mean_length(_TEXTS)
    source = chooser(offer.seed, "bursts")
    times = bursts(rate_per_s, offer.seconds, on_s=0.2, off_s=0.6, source=source)
    return Trace(offer.seconds, _calls(times, _TEXTS, source))


def _crowds(offer: Offer) -> Trace:
    """Make a trace with a fifth of the tokens at random, the others in crowds of 100 calls."""
    rate_per_s = 0.2 * offer.tokens_per_s / mean_length(_TEXTS)
    times = arrivals.poisson(rate_per_s, offer.seconds, offer.seed)
    calls = _calls(times, _TEXTS, chooser(offer.seed, "texts"))
    every_s = _CROWD * _CROWD_TOKENS / (0.8 * offer.tokens_per_s)
    crowds = range(1, math.ceil(offer.seconds / every_s))
    calls += [
        Arrival(number * every_s, (_CROWD_TOKENS,), deadline_s=60.0)
        for number in crowds
        for _ in range(_CROWD)
    ]
    return Trace(offer.seconds, sorted(calls, key=lambda call: call.at_s))


def _heavy(offer: Offer) -> Trace:
    texts = zipf(1.0, shortest=1, longest=64)
    rate_per_s = offer.tokens_per_s / mean_length(_HEAVY) / mean_length(texts)
    times = arrivals.poisson(rate_per_s, offer.seconds, offer.seed)
    source = chooser(offer.seed, "texts")
    return Trace(offer.seconds, _calls(times, _HEAVY, source, texts=texts))


def _classes(offer: Offer) -> Trace:
    rate_per_s = offer.tokens_per_s / mean_length(_QUERIES)
    times = arrivals.poisson(rate_per_s, offer.seconds, offer.seed)
    source = chooser(offer.seed, "texts")
    queries = _calls(times, _QUERIES, source)
    streams = [
        Stream(
            f"stream of {window} x 64",
            window,
            [tuple(_TEXTS(source) for _ in range(64)) for _ in range(100)],
        )
        for window in (1, 2, 4, 8)
    ]
    return Trace(offer.seconds, queries, streams)


# The share of each caller in all tokens.
_SHARES: Mapping[str, float] = {
    "100": 0.50,
    "60": 0.30,
    "30": 0.15,
    "4": 0.02,
    "3": 0.015,
    "2": 0.01,
    "1": 0.005,
}


def _callers(offer: Offer) -> Trace:
    rate_per_s = offer.tokens_per_s / mean_length(_TEXTS)
    calls: list[Arrival] = []
    for number, (name, share) in enumerate(_SHARES.items()):
        times = arrivals.poisson(rate_per_s * share, offer.seconds, offer.seed + number)
        calls += _calls(times, _TEXTS, chooser(offer.seed, name), caller=name)
    return Trace(offer.seconds, sorted(calls))


def _deadlines(offer: Offer) -> Trace:
    source = chooser(offer.seed, "deadlines")
    calls = [
        call._replace(deadline_s=source.uniform(0.05, 0.5)) if source.random() < 1 / 2 else call
        for call in _poisson(offer).arrivals
    ]
    return Trace(offer.seconds, calls)


def _many(offer: Offer) -> Trace:
    rate_per_s = offer.tokens_per_s / mean_length(_TEXTS)
    times = arrivals.poisson(rate_per_s, offer.seconds, offer.seed)
    source = chooser(offer.seed, "callers")
    calls = [
        call._replace(caller=str(source.randrange(100))) for call in _calls(times, _TEXTS, source)
    ]
    return Trace(offer.seconds, calls)


# An accelerator for each lane, with a model of about a billion parameters.
_ACCELERATORS = CostModel(batch_s=1e-3, token_s=10e-6)

SCENARIOS: Mapping[str, Scenario] = {
    "poisson": Scenario(
        what="Independent calls of one text; lengths are log-normal, 8 to 512",
        load=60,
        trace=_poisson,
    ),
    "bursts": Scenario(
        what="The same in bursts of 0.2 s, four times as dense, with pauses of 0.6 s",
        load=50,
        trace=_bursts,
    ),
    "crowds": Scenario(
        what="A fifth of the tokens at random, the others in crowds of 100 calls of 200 at once",
        load=40,
        trace=_crowds,
    ),
    "overload": Scenario(
        what="The calls of the first scenario, at twice the capacity",
        load=200,
        trace=_poisson,
    ),
    "heavy": Scenario(
        what="Calls of 1 to 64 texts of 8 to 512 tokens, both with heavy tails",
        load=60,
        trace=_heavy,
    ),
    "classes": Scenario(
        what="Queries beside four bulk streams, of 1 to 8 messages of 64 texts in flight",
        load=15,
        trace=_classes,
    ),
    "callers": Scenario(
        what="Seven callers, one of which sends a hundred times as much as another",
        load=200,
        trace=_callers,
    ),
    "deadlines": Scenario(
        what="Half of the calls have a deadline of 50 to 500 ms",
        load=110,
        trace=_deadlines,
    ),
    "scale": Scenario(
        what="A hundred callers and a hundred lanes, each lane with its own accelerator",
        load=82,
        trace=_many,
        seconds=3,
        lanes=100,
        processors=100,
        cost=_ACCELERATORS,
        settings={
            "batch_tokens": 1664,
            "max_queued_inputs": 65_536,
            "max_queued_tokens": 2**24,
            "max_queue_s": 60,
        },
    ),
}
