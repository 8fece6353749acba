"""From a batch's results to the sinks of the jobs that rode in it."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedgrpc.backends.base import FloatArray
from embedgrpc.engine import errors
from embedgrpc.engine.rows import Rows, cut_rows
from embedgrpc.engine.work import Job, QueuedSequence

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Results or a failure for some sequences of one job."""

    job: Job
    indices: Sequence[int]
    tokens: int
    outcome: Rows | errors.EngineError


def address_results(
    batch: list[QueuedSequence], results: Mapping[str, FloatArray], *, pad_left: bool
) -> list[Delivery]:
    """Gives each job its rows of the outputs it asked for, in as few pieces as can be."""
    positions_by_job: dict[Job, list[int]] = {}
    for position, one in enumerate(batch):
        positions_by_job.setdefault(one.job, []).append(position)
    deliveries = []
    for job, positions in positions_by_job.items():
        riders = [batch[position] for position in positions]
        rows = cut_rows(
            results,
            outputs=job.outputs,
            positions=positions,
            lengths=[rider.tokens for rider in riders],
            pad_left=pad_left,
        )
        finite = rows.finite()
        if finite.all():
            deliveries.append(_delivery(riders, rows))
            continue
        good, bad = finite.nonzero()[0].tolist(), (~finite).nonzero()[0].tolist()
        if good:
            deliveries.append(_delivery([riders[one] for one in good], rows.keep(good)))
        error = errors.NonFiniteOutputError("the model answered with NaN or infinity")
        deliveries.append(_delivery([riders[one] for one in bad], error))
    return deliveries


def address_failures(batch: list[QueuedSequence], error: errors.EngineError) -> list[Delivery]:
    """Tells each job of a failure that its sequences share."""
    riders_by_job: dict[Job, list[QueuedSequence]] = {}
    for one in batch:
        riders_by_job.setdefault(one.job, []).append(one)
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
        job = delivery.job
        job.reservation.release(len(delivery.indices), delivery.tokens)
        if job.cancelled:
            continue
        try:
            if isinstance(delivery.outcome, errors.EngineError):
                job.sink.failed(delivery.indices, delivery.outcome)
            else:
                job.sink.succeeded(delivery.indices, delivery.outcome)
        except Exception as error:  # noqa: BLE001 - others of this batch want their results
            fault = errors.EngineError.fault()
            _logger.error(  # noqa: TRY400 - what it says may hold a text
                "fault in a sink", extra=fault.log_fields(error)
            )
            _tell_of_fault(delivery, fault)


def _tell_of_fault(delivery: Delivery, fault: errors.EngineError) -> None:
    try:
        delivery.job.sink.failed(delivery.indices, fault)
    except Exception as error:  # noqa: BLE001 - others of this batch want their results
        _logger.error(  # noqa: TRY400 - what it says may hold a text
            "fault in a sink that was told of a fault", extra=fault.log_fields(error)
        )
