"""Whose work gives way when the queue is full."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest

from embedgrpc.engine.admission.admission import Admission
from embedgrpc.engine.admission.ledger import Reservation
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.errors import OverloadedError
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from tests.engine.fakes import Engine, FakeBackend, inputs_of, next_turn, running

INTERACTIVE, BULK = WorkClass.INTERACTIVE, WorkClass.BULK
MAX_INPUTS, MAX_TOKENS = 4096, 1_000_000
# So many jobs give way to one at the most.
JOBS_MAX = 64
FLOODS = ("a", "b", "c", "d")


class Queue:
    """The queue of a server, whose jobs can give way."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.admission = Admission(
            max_inputs=MAX_INPUTS,
            max_tokens=MAX_TOKENS,
            batch_tokens=MAX_TOKENS,
            max_queue_s=3600,
            weights=weights,
        )
        self.inside: list[Reservation] = []
        self.stopped: list[tuple[Reservation, OverloadedError]] = []

    def offer(self, caller: str, inputs: int, tokens: int = 0, *, can_stop: bool = True) -> bool:
        """Send a call; return whether it got in."""
        try:
            job = self.admission.admit(
                inputs=inputs, tokens=tokens, remaining_s=math.inf, caller=caller
            )
        except OverloadedError:
            return False

        def stop(error: OverloadedError) -> None:
            self.inside.remove(job)
            self.stopped.append((job, error))

        job.stop = stop if can_stop else None
        self.inside.append(job)
        return True

    def held(self) -> Counter[str]:
        """Return the inputs of each caller."""
        held: Counter[str] = Counter()
        for job in self.inside:
            held[job.caller] += job.inputs
        return held


def flooded(inputs: int = 512) -> Queue:
    """Return a queue that four callers keep full."""
    full = Queue()
    while all(full.offer(caller, inputs, tokens=inputs) for caller in FLOODS):
        pass
    assert full.admission.ledger.inputs(INTERACTIVE) == MAX_INPUTS
    assert not full.stopped
    full.admission.ledger.outcome_counts.clear()
    return full


@pytest.mark.parametrize("flood", [64, 512, 1024])
@pytest.mark.parametrize("own", [1, 16, 512, 819])
def test_four_callers_do_not_lock_out_a_fifth(flood: int, own: int) -> None:
    """Up to its fair share it gets in, however large their calls are; no flood gets in instead."""
    queue = flooded(flood)
    assert queue.offer("modest", own)
    assert queue.held()["modest"] == own
    assert {job.caller for job, _ in queue.stopped} <= set(FLOODS)
    assert sum(queue.held().values()) == queue.admission.ledger.inputs(INTERACTIVE) <= MAX_INPUTS
    gave_way = sum(queue.admission.ledger.outcome_counts.values())
    assert own <= gave_way < own + flood
    assert set(queue.admission.ledger.outcome_counts) == {
        (INTERACTIVE, SequenceOutcome.REFUSED_FULL)
    }


def test_the_newest_call_of_the_largest_gives_way() -> None:
    """Its client is told to retry; older calls and those of others stay."""
    queue = Queue()
    assert queue.offer("small", 1024)
    assert queue.offer("large", 2048)
    assert queue.offer("large", 1000)
    assert queue.offer("small", 24)
    assert queue.offer("new", 1)
    ((job, error),) = queue.stopped
    assert (job.caller, job.inputs) == ("large", 0)
    assert queue.held() == {"small": 1048, "large": 2048, "new": 1}
    assert error.metadata == {"label": "QUEUE_FULL"}
    assert "gave way" in error.message
    assert error.retry_delay_s is not None


def test_tokens_count_as_inputs_do() -> None:
    """Who holds most of either has the largest share."""
    queue = Queue()
    assert queue.offer("many inputs", 2000, 10)
    assert queue.offer("many tokens", 1, 600_000)
    assert queue.offer("many tokens", 1, 399_000)
    assert queue.offer("new", 1, 200_000)
    assert [job.caller for job, _ in queue.stopped] == ["many tokens"]
    assert not queue.offer("other", 1, 700_000)
    assert len(queue.stopped) == 1


def test_who_holds_as_much_as_any_other_is_refused() -> None:
    """Nobody gives way to the caller with the most, nor to one that would have as much."""
    queue = flooded()
    for caller in FLOODS:
        assert not queue.offer(caller, 1)
    assert not queue.offer("greedy", 1024)
    assert not queue.offer("enormous", MAX_INPUTS)
    assert not queue.stopped


def test_a_weight_makes_a_share_larger() -> None:
    """A caller with twice the weight may hold twice as much before it gives way."""
    weights = {"heavy": 2.0}
    queue = Queue(weights)
    assert queue.offer("heavy", 2000)
    assert queue.offer("light", 1500)
    assert queue.offer("light", 596)
    assert queue.offer("heavy", 400)
    assert [job.caller for job, _ in queue.stopped] == ["light"]
    assert queue.held() == {"heavy": 2400, "light": 1500}


def test_only_calls_that_can_be_stopped_give_way() -> None:
    """Streams and health checks stay, and so do callers whose calls are too many and too small."""
    queue = Queue()
    assert queue.offer("streams", 3000, can_stop=False)
    assert queue.offer("calls", 1096)
    assert queue.offer("new", 1)
    assert [job.caller for job, _ in queue.stopped] == ["calls"]
    many = Queue()
    for _ in range(MAX_INPUTS):
        assert many.offer("many", 1)
    assert not many.offer("new", JOBS_MAX + 1)
    assert not many.stopped
    assert many.offer("new", JOBS_MAX)
    assert len(many.stopped) == JOBS_MAX


@pytest.mark.parametrize("seed", range(6))
def test_calls_do_not_push_each_other_out_in_a_circle(seed: int) -> None:
    """While nothing is answered, calls that come again and again end up with nothing to gain."""
    source = random.Random(seed)  # noqa: S311 - no secret
    sizes = {f"caller {number}": source.choice([1, 7, 64, 512, 1024]) for number in range(12)}
    queue = Queue()
    rounds = 0
    before = -1
    while before != len(queue.inside) + len(queue.stopped):
        before = len(queue.inside) + len(queue.stopped)
        rounds += 1
        assert rounds < 5_000
        for caller, inputs in sizes.items():
            queue.offer(caller, inputs)
    held = queue.held()
    for caller in (one for one, inputs in sizes.items() if inputs <= JOBS_MAX):
        share = held[caller] + sizes[caller]
        assert held[caller]
        # What others have beyond that would not make room enough.
        assert sum(max(one - share, 0) for one in held.values()) < sizes[caller]
    for job in list(queue.inside):
        job.release_all()
    assert queue.admission.ledger.is_empty


def test_bulk_work_stays() -> None:
    """It has limits of its own, so interactive work gains nothing from it."""
    queue = Queue()
    bulk = queue.admission.admit_if_room(BULK, inputs=MAX_INPUTS, tokens=1, caller="bulk")
    assert bulk is not None
    assert queue.offer("calls", MAX_INPUTS)
    assert queue.offer("new", 1)
    assert bulk.inputs == MAX_INPUTS


async def _run(engine: Engine, caller: str, *texts: str) -> object:
    call = Call(INTERACTIVE, caller=caller)
    return (await engine.pipeline.run(inputs_of(list(texts)), call)).rows


async def test_a_call_that_gives_way_leaves_nothing_behind() -> None:
    """It ends at once; its texts leave the queue, and those of all others are answered."""
    backend = FakeBackend()
    with running(backend, max_inputs=8) as engine:
        backend.gate.close()
        first = asyncio.create_task(_run(engine, "flood", "running"))
        await next_turn()
        backend.gate.wait_for(1)
        old = asyncio.create_task(_run(engine, "flood", "old 1", "old 2", "same"))
        new = asyncio.create_task(_run(engine, "flood", "new 1", "new 2", "new 3", "same"))
        await next_turn()
        engine.wait_until_tokenized()
        modest = asyncio.create_task(_run(engine, "modest", "modest", "same"))
        with pytest.raises(OverloadedError) as gave_way:
            await new
        assert "gave way" in gave_way.value.message
        engine.wait_until_tokenized()
        assert engine.admission.ledger.inputs(INTERACTIVE) == 6
        assert len(engine.scheduler._dispatcher.queue) == 5
        backend.gate.open()
        await asyncio.gather(first, old, modest)
        counts = engine.admission.ledger.outcome_counts
        assert counts[INTERACTIVE, SequenceOutcome.ANSWERED] == 6
        assert counts[INTERACTIVE, SequenceOutcome.REFUSED_FULL] == 4
        assert engine.admission.ledger.is_empty
