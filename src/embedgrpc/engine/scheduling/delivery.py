"""From a batch's results to the sinks of the jobs that rode in it."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedgrpc.backends.base import FloatArray
from embedgrpc.engine import errors
from embedgrpc.engine.admission.fates import Fate
from embedgrpc.engine.results.rows import Rows, cut_rows
from embedgrpc.engine.work import Job, QueuedSequence, Row

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Results or a failure for some sequences of one job."""

    job: Job
    indices: Sequence[int]
    tokens: int
    outcome: Rows | errors.EngineError


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of some rows of a batch that was run.

    Attributes:
        results: By output, float32 [batch, ...].
        positions: Where in it the rows stand.
    """

    results: Mapping[str, FloatArray]
    positions: Sequence[int]


def address_answer(rows: Sequence[Row], answer: Answer, *, pad_left: bool) -> list[Delivery]:
    """Gives each job its rows of the outputs it asked for, in one piece."""
    positions_by_job: dict[Job, list[int]] = {}
    riders_by_job: dict[Job, list[QueuedSequence]] = {}
    for position, row in zip(answer.positions, rows, strict=True):
        for rider in row:
            positions_by_job.setdefault(rider.job, []).append(position)
            riders_by_job.setdefault(rider.job, []).append(rider)
    return [
        _delivery(
            riders,
            cut_rows(
                answer.results,
                outputs=job.outputs,
                positions=positions_by_job[job],
                lengths=[rider.tokens for rider in riders],
                pad_left=pad_left,
            ),
        )
        for job, riders in riders_by_job.items()
    ]


def address_failure(rows: Sequence[Row], error: errors.EngineError) -> list[Delivery]:
    """Tells each job of a failure that its sequences share."""
    riders_by_job: dict[Job, list[QueuedSequence]] = {}
    for row in rows:
        for rider in row:
            riders_by_job.setdefault(rider.job, []).append(rider)
    # Each job gets an error of its own: raising one adds to it.
    return [_delivery(riders, copy.copy(error)) for riders in riders_by_job.values()]


def _delivery(riders: list[QueuedSequence], outcome: Rows | errors.EngineError) -> Delivery:
    """Addresses an outcome to sequences of one job."""
    return Delivery(
        job=riders[0].job,
        indices=[rider.index for rider in riders],
        tokens=sum(rider.tokens for rider in riders),
        outcome=outcome,
    )


def hand_over(deliveries: list[Delivery]) -> None:
    """Gives each job's sink its part. On the event loop."""
    for delivery in deliveries:
        try:
            _hand_over(delivery)
        except Exception as error:  # noqa: BLE001 - others of this batch want their results
            fault = errors.EngineError.fault()
            _logger.error(  # noqa: TRY400 - what it says may hold a text
                "fault in a sink", extra=fault.log_fields(error)
            )
            _tell_of_fault(delivery, fault)


def _hand_over(delivery: Delivery) -> None:
    job, outcome = delivery.job, delivery.outcome
    job.reservation.release(len(delivery.indices), delivery.tokens, _fate_of(outcome))
    if not job.reservation.inputs:
        # It is done: else it and its sequences would wait for the garbage collector.
        job.queued = ()
    if job.cancelled:
        return
    if isinstance(outcome, errors.EngineError):
        job.sink.failed(delivery.indices, outcome)
    else:
        job.sink.succeeded(delivery.indices, outcome)


def _fate_of(outcome: Rows | errors.EngineError) -> Fate:
    if isinstance(outcome, errors.DeadlineExpiredError):
        return Fate.EXPIRED
    return Fate.FAILED if isinstance(outcome, errors.EngineError) else Fate.ANSWERED


def _tell_of_fault(delivery: Delivery, fault: errors.EngineError) -> None:
    try:
        delivery.job.sink.failed(delivery.indices, fault)
    except Exception as error:  # noqa: BLE001 - others of this batch want their results
        _logger.error(  # noqa: TRY400 - what it says may hold a text
            "fault in a sink that was told of a fault", extra=fault.log_fields(error)
        )
