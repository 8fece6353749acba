"""Chooses the work that gives way when the queue is full.

Without this, a few callers who keep the queue full would lock out all others. Each eviction makes
the largest share smaller and lets in a smaller one, so work cannot push itself out in a circle.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedgrpc.engine.admission.ledger import Ledger, Reservation
from embedgrpc.engine.work_class import WorkClass

# So many jobs give way to one: each takes some microseconds of the event loop.
_JOBS_MAX = 64


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A job that does not fit.

    Attributes:
        caller: Its caller.
        inputs: The inputs that its caller would hold with it.
        tokens: The tokens that its caller would hold with it.
        missing_inputs: How many inputs are too many.
        missing_tokens: How many tokens are too many.
    """

    caller: str
    inputs: int
    tokens: int
    missing_inputs: int
    missing_tokens: int


def choose(
    ledger: Ledger,
    work_class: WorkClass,
    newcomer: Newcomer,
    share_of: Callable[[str, int, int], float],
) -> Sequence[Reservation]:
    """Choose jobs that give way to another caller's: the newest of the caller with the most.

    Args:
        ledger: The work inside.
        work_class: The class of the newcomer; only its jobs give way.
        newcomer: The job that does not fit.
        share_of: Returns a caller's share of the queue, from its inputs and its tokens.

    Returns:
        The jobs; empty if the newcomer does not fit even so, or its caller would hold as much as
        any other.
    """
    own = share_of(newcomer.caller, newcomer.inputs, newcomer.tokens)
    held = {
        caller: (ledger.held_inputs(work_class, caller), ledger.held_tokens(work_class, caller))
        for caller in ledger.callers(work_class)
        if caller != newcomer.caller
    }
    largest = [(-share_of(caller, *amounts), caller) for caller, amounts in held.items()]
    heapq.heapify(largest)
    jobs = {}
    chosen: list[Reservation] = []
    missing_inputs, missing_tokens = newcomer.missing_inputs, newcomer.missing_tokens
    while missing_inputs > 0 or missing_tokens > 0:
        if not largest or -largest[0][0] <= own or len(chosen) == _JOBS_MAX:
            return ()
        _, caller = heapq.heappop(largest)
        if caller not in jobs:
            jobs[caller] = iter(ledger.newest_first(work_class, caller))
        job = next((one for one in jobs[caller] if one.stop is not None), None)
        if job is None:
            continue
        chosen.append(job)
        room_inputs, room_tokens = job.room
        missing_inputs -= room_inputs
        missing_tokens -= room_tokens
        inputs, tokens = held[caller]
        held[caller] = inputs - job.inputs, tokens - job.tokens
        heapq.heappush(largest, (-share_of(caller, *held[caller]), caller))
    return chosen
