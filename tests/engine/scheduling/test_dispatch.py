from dataclasses import replace

from embedgrpc.engine.scheduling.batching import BatchBudget
from embedgrpc.engine.scheduling.dispatch import Dispatcher
from embedgrpc.engine.work_class import WorkClass
from tests.engine.scheduling.test_model_queue import queued


def _giving_way(budget: BatchBudget) -> Dispatcher:
    return Dispatcher(budget, {}, bulk_batch_s=1, lanes=2, lanes_compete=False, bulk_gives_way=True)


def _push(dispatcher: Dispatcher, work_class: WorkClass, count: int, now: float = 0) -> None:
    """Queue sequences of 10 tokens, no two equal."""
    for _ in range(count):
        dispatcher.push(queued(10, 0, work_class), now)


def test_interactive_batches_do_not_change_the_size_of_bulk_batches() -> None:
    """Small batches, as calls have, say little about large ones."""
    budget = BatchBudget(tokens=40, sequences=8, overhead_tokens=0)
    dispatcher = Dispatcher(budget, {}, bulk_batch_s=1, lanes=1, lanes_compete=False)
    dispatcher.learn(WorkClass.INTERACTIVE, 40, 100)
    assert dispatcher.queue.budget == budget
    dispatcher.learn(WorkClass.BULK, 40, 4)
    assert dispatcher.queue.budget == replace(budget, shared_tokens=10)


def test_the_size_of_bulk_batches_that_give_way_stays() -> None:
    """They hold nobody up, and take long because others go first."""
    budget = BatchBudget(tokens=40, sequences=8, overhead_tokens=0)
    dispatcher = _giving_way(budget)
    dispatcher.learn(WorkClass.BULK, 40, 4)
    assert dispatcher.queue.budget == budget


def test_bulk_gives_way_for_a_second_after_the_last_call() -> None:
    """At other times it runs as ever, and its lanes are full without another."""
    dispatcher = _giving_way(BatchBudget(tokens=10, sequences=1, overhead_tokens=0))
    _push(dispatcher, WorkClass.INTERACTIVE, 1, now=5)
    _push(dispatcher, WorkClass.BULK, 4)
    found = [dispatcher.begin(now) for now in (5, 5.9, 6.1, 6.1)]
    assert [(one.work_class, one.gives_way) for one in found if one] == [
        (WorkClass.INTERACTIVE, False),
        (WorkClass.BULK, True),
        (WorkClass.BULK, False),
    ]


def test_bulk_that_gives_way_gets_its_share_of_the_cores() -> None:
    """After four budgets of calls have passed a bulk batch, calls wait until one has ended."""
    dispatcher = _giving_way(BatchBudget(tokens=100, sequences=10, overhead_tokens=0))
    interactive, bulk = WorkClass.INTERACTIVE, WorkClass.BULK
    _push(dispatcher, interactive, 1)
    _push(dispatcher, bulk, 100)
    assert dispatcher.begin(0)
    dispatcher.finish(interactive)
    _push(dispatcher, interactive, 1000)
    turns = []
    running = 0
    for _ in range(50):
        # Bulk batches end only where nothing else may run, as if calls had all the cores.
        batch = dispatcher.begin(0)
        if batch is None:
            assert running
            dispatcher.finish(bulk)
            running -= 1
        elif batch.work_class is interactive:
            turns.append(interactive)
            dispatcher.finish(interactive)
        else:
            turns.append(bulk)
            running += 1
    assert turns.count(bulk) >= len(turns) // 5
    assert turns.count(interactive) >= turns.count(bulk) * 3
