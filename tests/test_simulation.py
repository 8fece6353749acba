import itertools
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import arrivals
from benchmarks.scenarios import SCENARIOS, Offer
from benchmarks.simulated_machine import CostModel, Machine
from benchmarks.simulated_policies import POLICIES, Counted, CountedOrLate, Fifo, Own, Policy
from benchmarks.simulated_record import Ending, Record, backlogged
from benchmarks.simulated_run import simulate
from benchmarks.simulated_server import SimulatedServer
from benchmarks.simulated_time import VirtualTime
from benchmarks.traces import Arrival, Stream, Trace, bursts, chooser
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.server.settings.settings import Settings

COST = CostModel(batch_s=0.002, token_s=100e-6)
SETTINGS = Settings()
# Accepts everything, so that the queue's behaviour shows.
OPEN = Settings(max_queued_inputs=65_536, max_queued_tokens=2**24, max_queue_s=3600)


def machine(*, lanes: int = 2, sequences: int = 512, processors: int = 1) -> Machine:
    """A machine with round numbers."""
    budget = BatchBudget(tokens=512, sequences=sequences, overhead_tokens=20)
    return Machine(COST, lanes, processors, budget)


def trace_of(name: str, *, load: int, seconds: float, seed: int = 20) -> Trace:
    """Return what a scenario sends to such a machine."""
    tokens_per_s = machine().capacity_tokens_per_s * load / 100
    return SCENARIOS[name].trace(Offer(tokens_per_s, seconds, seed))


def calls(times: Sequence[float], lengths: Sequence[int]) -> Trace:
    """Return calls of one text each, with all lengths equally often."""
    source = chooser(20, "lengths")
    return Trace(math.ceil(times[-1]), [Arrival(at_s, (source.choice(lengths),)) for at_s in times])


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("name", ["bursts", "classes", "callers", "deadlines"])
def test_every_call_ends_once(name: str, policy: type[Policy]) -> None:
    """At any time each call was answered, refused or dropped, or is inside; in the end none is."""
    clock, record = VirtualTime(), Record(0, 10)
    made = policy(machine(), Settings(max_queued_inputs=512), clock.read)
    server = SimulatedServer(clock, machine(), made, record)
    server.take(trace_of(name, load=150, seconds=10))
    for until_s in (0.0, 1.0, 5.0, 10.0, math.inf):
        clock.run(until_s)
        assert record.arrivals == record.endings.total() + server.inside
    assert server.inside == 0
    assert made.door.admission.inputs == 0
    assert record.endings[Ending.ANSWERED]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_same_seed_gives_the_same_figures(policy: type[Policy]) -> None:
    """Only the seed decides what arrives, and only that decides what is done."""
    first, second = (
        simulate(trace_of("classes", load=30, seconds=5), machine(), policy, settings=SETTINGS)
        for _ in range(2)
    )
    assert first.endings == second.endings
    assert first.tokens_per_s == second.tokens_per_s
    assert first.real_share == second.real_share
    assert first.latency_s(99) == second.latency_s(99)
    other = trace_of("classes", load=30, seconds=5, seed=21)
    assert trace_of("classes", load=30, seconds=5) != other


@pytest.mark.parametrize("policy", [Own, pytest.param(Fifo, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "lengths",
    [pytest.param((100,), marks=pytest.mark.slow), (10, 30, 260)],
    ids=["one length", "three lengths"],
)
def test_a_single_server_waits_as_long_as_theory_says(
    lengths: Sequence[int], policy: type[Policy]
) -> None:
    """One text per batch on one lane is M/G/1, with Pollaczek and Khinchine's mean."""
    services_s = [COST.seconds(length) for length in lengths]
    mean_s = sum(services_s) / len(lengths)
    squares = sum(service_s**2 for service_s in services_s) / len(lengths)
    utilization = 0.7
    times = arrivals.poisson(utilization / mean_s, 600, seed=3)
    trace = calls(times, lengths)
    rate_per_s = len(times) / trace.seconds
    wait_s = rate_per_s * squares / (2 * (1 - rate_per_s * mean_s))
    record = simulate(trace, machine(lanes=1, sequences=1), policy, settings=OPEN)
    assert record.texts_a_batch == 1
    assert record.mean_latency_s - mean_s == pytest.approx(wait_s, rel=0.1)


def test_lanes_that_compete_share_a_processor() -> None:
    """Two batches at once take as long as one after the other; with two processors, half."""
    trace = Trace(1, [Arrival(0, (100,)), Arrival(0, (100,))])
    alone_s = COST.seconds(100)
    for processors, factor in ((1, 2), (2, 1)):
        site = machine(sequences=1, processors=processors)
        record = simulate(trace, site, Fifo, settings=OPEN, warm_up_share=0)
        assert record.latency_s(50) == pytest.approx(factor * alone_s)


def test_batches_of_like_lengths_have_less_padding() -> None:
    """Of mixed lengths we compute less padding than policies that go by order of arrival."""
    trace = trace_of("poisson", load=100, seconds=30)
    shares = {
        policy: simulate(trace, machine(), policy, settings=SETTINGS).real_share
        for policy in (Own, Fifo, Counted, CountedOrLate)
    }
    assert shares[Own] > 0.9
    assert shares[Fifo] < 0.8
    assert max(shares[Counted], shares[CountedOrLate]) < 0.4


def test_unequal_callers_are_served_equally() -> None:
    """A caller that sends five times as much gets as much as others, if all want more."""
    texts_per_s = machine().capacity_tokens_per_s / 64
    shares = {"five": 5.0, "one": 1.0, "little": 0.05}
    arrived = [
        Arrival(at_s, (64,), caller)
        for number, (caller, share) in enumerate(shares.items())
        for at_s in arrivals.poisson(texts_per_s * share, 20, seed=number)
    ]
    trace = Trace(20, sorted(arrived))
    assert backlogged(trace.tokens_by_caller, 20 * 64 * texts_per_s) == {"five", "one"}
    # This is about the overload itself, not the long queue before it is noticed.
    short = Settings(max_queue_s=1)
    own, fifo = (simulate(trace, machine(), policy, settings=short) for policy in (Own, Fifo))
    assert own.jain(frozenset({"five", "one"})) > 0.9
    assert fifo.jain(frozenset({"five", "one"})) < 0.8
    assert own.service("little").texts_per_s == pytest.approx(0.05 * texts_per_s, rel=0.2)
    assert own.service("little").p99_s < 0.5 < fifo.service("little").p99_s


def test_crowds_are_answered_and_overloads_are_not() -> None:
    """A hundred calls at once after a quiet time get in; twice the load for long does not."""
    crowds = simulate(trace_of("crowds", load=40, seconds=30), machine(), Own, settings=SETTINGS)
    assert crowds.share(Ending.ANSWERED) == 1
    trace = trace_of("overload", load=200, seconds=30)
    overload = simulate(trace, machine(), Own, settings=SETTINGS, warm_up_share=0.3)
    assert overload.share(Ending.REFUSED) > 0.3
    assert overload.latency_s(99) < 1


def test_unequal_streams_are_served_equally() -> None:
    """A stream that keeps eight times as much in flight gets no more of the machine."""
    streams = [Stream(name, window, [(64,) * 64]) for name, window in (("one", 1), ("eight", 8))]
    trace = Trace(20, [], streams)
    own, fifo = (simulate(trace, machine(), policy, settings=SETTINGS) for policy in (Own, Fifo))
    assert own.jain(frozenset({"one", "eight"})) > 0.97
    assert fifo.jain(frozenset({"one", "eight"})) < 0.7


def test_bulk_work_does_not_starve() -> None:
    """Beside more calls than can be answered, bulk work gets its fifth."""
    times = arrivals.poisson(machine().capacity_tokens_per_s / 64 * 2, 20, seed=1)
    streams = [Stream("stream", 4, [(64,) * 64])]
    record = simulate(
        Trace(20, calls(times, (64,)).arrivals, streams), machine(), Own, settings=SETTINGS
    )
    assert record.bulk_texts_per_s / record.texts_per_s > 0.15
    assert record.share(Ending.REFUSED) > 0.3


def test_deadlines_that_pass_are_not_run() -> None:
    """Calls past their deadline leave the queue without running."""
    trace = Trace(4, [Arrival(0, (64,), deadline_s=0.1)] * 1000)
    record = simulate(trace, machine(), Fifo, settings=OPEN, warm_up_share=0)
    assert record.endings[Ending.EXPIRED] > 900
    assert record.texts_run < 100


def test_a_timer_waits_for_others_but_not_for_long() -> None:
    """A lone text runs after 5 ms; 32 texts run at once."""
    alone = Trace(1, [Arrival(0, (64,))])
    record = simulate(alone, machine(), CountedOrLate, settings=OPEN, warm_up_share=0)
    assert record.latency_s(99) == pytest.approx(0.005 + COST.seconds(64))
    together = Trace(1, [Arrival(0, (64,))] * 32)
    record = simulate(together, machine(), CountedOrLate, settings=OPEN, warm_up_share=0)
    assert record.latency_s(99) == pytest.approx(COST.seconds(32 * 64))


def test_bursts_come_as_often_as_they_should() -> None:
    """Pauses are made up for by bursts, which are denser than chance would make them."""
    times = bursts(100, 1000, on_s=0.1, off_s=0.3, source=chooser(1, "test"))
    assert times == sorted(times)
    assert len(times) / 1000 == pytest.approx(100, rel=0.1)
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean_s = sum(gaps_s) / len(gaps_s)
    variance = sum((gap_s - mean_s) ** 2 for gap_s in gaps_s) / len(gaps_s)
    assert variance > 2 * mean_s**2


def test_fair_shares_are_told_from_modest_wishes() -> None:
    """What modest callers leave is for others; a caller that wants no more has no backlog."""
    assert backlogged({"a": 10, "b": 30, "c": math.inf, "d": 60}, 100) == {"c", "d"}
    assert backlogged({"a": 10, "b": 30}, 100) == frozenset()


@pytest.mark.long
def test_the_command_prints_tables_and_draws_the_same_plot_again(tmp_path: Path) -> None:
    """A short run of the command succeeds, and a second one draws the same bytes."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.simulation", "--seconds", "1"),
                *("--scenario", "classes", "--loads", "10,50"),
                *("--batch-ms", "2", "--token-us", "100", "--plots", str(folder)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for text in ("## classes", "| own | ", "| timer | ", "| queries | ", "admit, us a text |"):
            assert text in done.stdout
    first, second = (folder / "simulation-classes.svg" for folder in folders)
    assert first.read_bytes() == second.read_bytes()
