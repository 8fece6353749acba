"""Run one trace under one policy, from the first arrival to the last result."""

from collections.abc import Callable

from benchmarks.scheduling_cost import SchedulingCost
from benchmarks.simulated_machine import Machine
from benchmarks.simulated_policies import Policy
from benchmarks.simulated_record import Record
from benchmarks.simulated_server import SimulatedServer
from benchmarks.simulated_time import VirtualTime
from benchmarks.traces import Trace
from embedgrpc.server.settings.settings import Settings

_WARM_UP_SHARE = 0.1


def simulate(
    trace: Trace,
    machine: Machine,
    policy: Callable[[Machine, Settings, Callable[[], float]], Policy],
    *,
    settings: Settings,
    cost: SchedulingCost | None = None,
    warm_up_share: float = _WARM_UP_SHARE,
) -> Record:
    """Run a trace under a policy until all its calls have ended.

    Args:
        trace: The load.
        machine: The machine that runs batches.
        policy: Makes the policy.
        settings: The settings of the server.
        cost: Records the CPU time of the policy's steps, if given.
        warm_up_share: The first part of the trace, which fills the queues and does not count.
    """
    clock = VirtualTime()
    record = Record(trace.seconds * warm_up_share, trace.seconds)
    made = policy(machine, settings, clock.read)
    if cost is not None:
        cost.watch(made)
    SimulatedServer(clock, machine, made, record).take(trace)
    clock.run()
    return record
