"""Print tables of policies on the same trace."""

from collections.abc import Mapping

from benchmarks.figures import milliseconds, number
from benchmarks.scheduling_cost import SchedulingCost
from benchmarks.simulated_machine import Machine
from benchmarks.simulated_record import Ending, Record, backlogged
from benchmarks.traces import Trace

# More callers than this have no rows of their own.
_CALLERS_MAX = 8


def print_machine(machine: Machine) -> None:
    """Print the cost and the budget of batches."""
    cost, budget = machine.cost, machine.budget
    print(
        f"A batch takes {cost.batch_s * 1e3:.3g} ms and {cost.token_s * 1e6:.3g} us a padded token;"
        f" lanes: {machine.lanes}, at full speed: {machine.processors}. Budget: {budget.tokens:,}"
        f" padded tokens. Full batches: {machine.capacity_tokens_per_s:,.0f} tokens/s.\n"
    )


def print_policies(machine: Machine, trace: Trace, records: Mapping[str, Record]) -> None:
    """Print a row for each policy."""
    tokens = trace.tokens_by_caller
    capacity = machine.capacity_tokens_per_s * trace.seconds
    greedy = backlogged(tokens, capacity)
    modest = sorted(tokens.keys() - greedy)
    print(
        "| policy | tokens/s | texts/s | real / computed | texts a batch | p50 | p95 | p99", end=""
    )
    print(" | bulk texts/s | refused | expired | fairness | worst light caller's p99 |")
    print(f"{'|---' * 13}|")
    for name, record in records.items():
        light_s = max((record.service(one).p99_s for one in modest), default=float("nan"))
        cells = (
            name,
            f"{record.tokens_per_s:,.0f}",
            f"{record.texts_per_s:,.1f}",
            f"{record.real_share:.3f}",
            f"{record.texts_a_batch:.1f}",
            *(milliseconds(record.latency_s(percent)) for percent in (50, 95, 99)),
            f"{record.bulk_texts_per_s:,.1f}",
            f"{record.share(Ending.REFUSED):.1%}",
            f"{record.share(Ending.EXPIRED):.1%}",
            number(record.jain(greedy)) if len(greedy) > 1 else "-",
            milliseconds(light_s) if greedy else "-",
        )
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def print_callers(trace: Trace, records: Mapping[str, Record]) -> None:
    """Print the service of each caller, where there are two to eight."""
    tokens = trace.tokens_by_caller
    callers = sorted(tokens, key=lambda name: tokens[name])
    if not 1 < len(callers) <= _CALLERS_MAX:
        return
    print(f"| texts/s, p99 of | {' | '.join(records)} |\n|---{'|---' * len(records)}|")
    for caller in callers:
        services = [record.service(caller) for record in records.values()]
        cells = [f"{one.texts_per_s:,.1f}, {milliseconds(one.p99_s)}" for one in services]
        print(f"| {caller or 'queries'} | {' | '.join(cells)} |")
    print(flush=True)


def print_costs(costs: Mapping[str, SchedulingCost], records: Mapping[str, Record]) -> None:
    """Print the cost of scheduling, and the texts a second that one core can schedule."""
    print("CPU time of the scheduling itself, in Python:\n")
    print("| policy | admit, us a text | queue | form batches | release", end="")
    print(" | all | form batches, us a batch | texts/s of one core |")
    print(f"{'|---' * 8}|")
    for name, cost in costs.items():
        texts, batches = records[name].texts_run, records[name].batches_run
        making_s = sum(cost.step_s(step) for step in ("begin", "finish"))
        steps_s = [*map(cost.step_s, ("admit", "push")), making_s, cost.step_s("release")]
        cells = (
            name,
            *(f"{step_s / texts * 1e6:.1f}" for step_s in (*steps_s, sum(steps_s))),
            f"{making_s / batches * 1e6:.0f}",
            f"{texts / sum(steps_s):,.0f}",
        )
        print(f"| {' | '.join(cells)} |")
    print(flush=True)
