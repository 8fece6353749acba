"""Compare the server's scheduling with that of common servers on the same traces.

uv run python -m benchmarks.simulation [--scenario NAME ...] [--batch-ms MS --token-us US]
"""

import argparse
import cProfile
import gc
import pstats
from functools import cache
from pathlib import Path

from benchmarks import simulation_tables
from benchmarks.scenarios import SCENARIOS, Offer, Scenario
from benchmarks.scheduling_cost import SchedulingCost
from benchmarks.simulated_machine import CostModel, Machine
from benchmarks.simulated_policies import POLICIES
from benchmarks.simulated_record import Record
from benchmarks.simulated_run import simulate
from benchmarks.traces import Trace
from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.server.loading.prepared_model import OVERHEAD_TOKENS, default_batch_tokens
from embedgrpc.server.settings.settings import Settings

_LOADS = (10, 30, 50, 70, 80, 90, 95, 100, 120, 200)
_SEED = 20


def main() -> None:
    """Run one scenario after the other, and print tables of each."""
    arguments = _arguments()
    for name in arguments.scenario:
        scenario = SCENARIOS[name]
        settings = Settings(**{**scenario.settings, **dict(arguments.set)})
        machine = _machine(scenario, settings, arguments)
        trace = _trace(scenario, machine, arguments, load=arguments.load or scenario.load)
        print(f"## {name}\n\n{scenario.what}. {trace.seconds:g} s at", end=" ")
        print(f"{arguments.load or scenario.load} % load, seed {arguments.seed}.", end=" ")
        simulation_tables.print_machine(machine)
        if arguments.profile:
            _profile(trace, machine, settings, arguments.profile)
            continue
        # Otherwise the garbage collector scans the trace again and again, at the cost of the policy
        # that allocates at that moment.
        gc.collect()
        gc.freeze()
        costs = {one: SchedulingCost() for one in arguments.policy}
        records = {
            one: simulate(trace, machine, POLICIES[one], settings=settings, cost=costs[one])
            for one in arguments.policy
        }
        simulation_tables.print_policies(machine, trace, records)
        simulation_tables.print_callers(trace, records)
        simulation_tables.print_costs(costs, records)
        if arguments.plots:
            _draw(arguments, name, scenario, machine, settings)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument(
        "--seconds", type=float, help="length of each trace; default: that of the scenario"
    )
    parser.add_argument("--seed", type=int, default=_SEED)
    parser.add_argument(
        "--load", type=int, help="percent of full batches; default: that of the scenario"
    )
    parser.add_argument("--batch-ms", type=float, help="fixed time of a batch")
    parser.add_argument("--token-us", type=float, help="time of each padded token")
    parser.add_argument("--lanes", type=int, help="batches that run at once")
    parser.add_argument("--processors", type=int, help="lanes that run at full speed")
    parser.add_argument(
        "--set",
        nargs="+",
        type=lambda text: tuple(text.split("=", 1)),
        default=[],
        metavar="NAME=VALUE",
        help="settings of the server, such as max_queue_s=5 batch_tokens=512",
    )
    parser.add_argument("--plots", type=Path, help="folder for a plot of each scenario")
    parser.add_argument(
        "--loads",
        type=lambda text: tuple(int(load) for load in text.split(",")),
        default=_LOADS,
        help="loads of the plots in percent, separated by commas",
    )
    parser.add_argument(
        "--profile",
        type=int,
        metavar="ROWS",
        help="profile the server's policy instead, and print the top ROWS functions",
    )
    arguments = parser.parse_args()
    if (arguments.batch_ms is None) != (arguments.token_us is None):
        parser.error("--batch-ms and --token-us go together")
    return arguments


def _machine(scenario: Scenario, settings: Settings, arguments: argparse.Namespace) -> Machine:
    if arguments.batch_ms is not None:
        cost = CostModel(arguments.batch_ms / 1e3, arguments.token_us / 1e6)
    else:
        cost = scenario.cost or _measured()
    budget = BatchBudget(
        tokens=settings.batch_tokens or default_batch_tokens(on_gpu=False),
        sequences=settings.batch_sequences,
        overhead_tokens=OVERHEAD_TOKENS,
    )
    return Machine(
        cost,
        lanes=arguments.lanes or scenario.lanes,
        processors=arguments.processors or scenario.processors,
        budget=budget,
    )


@cache
def _measured() -> CostModel:
    # Slow to import, and nothing else needs the model's libraries.
    from benchmarks.measured_cost import measure  # noqa: PLC0415 - see above

    return measure()


def _trace(
    scenario: Scenario, machine: Machine, arguments: argparse.Namespace, *, load: int
) -> Trace:
    tokens_per_s = machine.capacity_tokens_per_s * load / 100
    seconds = arguments.seconds or scenario.seconds
    return scenario.trace(Offer(tokens_per_s, seconds, arguments.seed))


def _draw(
    arguments: argparse.Namespace,
    name: str,
    scenario: Scenario,
    machine: Machine,
    settings: Settings,
) -> None:
    # Slow to import, and only a plot needs it.
    from benchmarks.simulation_plot import plot  # noqa: PLC0415 - see above

    records: dict[str, dict[int, Record]] = {one: {} for one in arguments.policy}
    for load in arguments.loads:
        trace = _trace(scenario, machine, arguments, load=load)
        for one, by_load in records.items():
            by_load[load] = simulate(trace, machine, POLICIES[one], settings=settings)
    arguments.plots.mkdir(parents=True, exist_ok=True)
    path = arguments.plots / f"simulation-{name}.svg"
    plot(path, f"{name}, simulated", records)
    print(f"![{name}, simulated]({path})\n", flush=True)


def _profile(trace: Trace, machine: Machine, settings: Settings, rows: int) -> None:
    profile = cProfile.Profile()
    profile.runcall(simulate, trace, machine, POLICIES["own"], settings=settings)
    pstats.Stats(profile).sort_stats("tottime").print_stats(rows)


if __name__ == "__main__":
    main()
