"""One trace under one policy, from the first arrival to the last answer."""

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
    """Serves a trace under a policy until all of it has ended.

    Args:
        trace: What comes.
        machine: What runs it.
        policy: Makes the policy.
        settings: The server's.
        cost: Is told what the policy's own steps cost, if given.
        warm_up_share: The part of the trace in which queues fill, and nothing counts.
    """
    clock = VirtualTime()
    record = Record(trace.seconds * warm_up_share, trace.seconds)
    made = policy(machine, settings, clock.read)
    if cost is not None:
        cost.watch(made)
    SimulatedServer(clock, machine, made, record).take(trace)
    clock.run()
    return record
