"""From a batch's results to the sinks of the jobs that rode in it."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedgrpc.engine import errors
from embedgrpc.engine.admission.outcomes import SequenceOutcome
from embedgrpc.engine.results.rows import OutputRows, cut_rows
from embedgrpc.engine.scheduling.isolation import RunResult
from embedgrpc.engine.work import BatchEntry, Job, QueuedSequence
from embedgrpc.libraries.arrays import FloatArray

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Results or a failure for some sequences of one job."""

    job: Job
    indices: Sequence[int]
    tokens: int
    result: OutputRows | errors.EngineError


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What the model says of some entries of a batch that was run.

    Attributes:
        arrays: By output, float32 [batch, ...].
        positions: Where in it the entries stand.
    """

    arrays: Mapping[str, FloatArray]
    positions: Sequence[int]


# What became of some entries of a batch.
BatchResult = RunResult[BatchEntry, ModelOutput]


def address_output(
    entries: Sequence[BatchEntry], output: ModelOutput, *, pad_left: bool
) -> list[Delivery]:
    """Gives each job its rows of the outputs it asked for, in one piece."""
    positions_by_job: dict[Job, list[int]] = {}
    riders_by_job: dict[Job, list[QueuedSequence]] = {}
    for position, entry in zip(output.positions, entries, strict=True):
        for rider in entry:
            positions_by_job.setdefault(rider.job, []).append(position)
            riders_by_job.setdefault(rider.job, []).append(rider)
    return [
        _delivery(
            riders,
            cut_rows(
                output.arrays,
                outputs=job.outputs,
                positions=positions_by_job[job],
                lengths=[rider.tokens for rider in riders],
                pad_left=pad_left,
            ),
        )
        for job, riders in riders_by_job.items()
    ]


def address_failure(entries: Sequence[BatchEntry], error: errors.EngineError) -> list[Delivery]:
    """Tells each job of a failure that its sequences share."""
    riders_by_job: dict[Job, list[QueuedSequence]] = {}
    for entry in entries:
        for rider in entry:
            riders_by_job.setdefault(rider.job, []).append(rider)
    # Each job gets an error of its own: raising one adds to it.
    return [_delivery(riders, copy.copy(error)) for riders in riders_by_job.values()]


def _delivery(riders: list[QueuedSequence], result: OutputRows | errors.EngineError) -> Delivery:
    """Addresses a result to sequences of one job."""
    return Delivery(
        job=riders[0].job,
        indices=[rider.index for rider in riders],
        tokens=sum(rider.tokens for rider in riders),
        result=result,
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
    job, result = delivery.job, delivery.result
    job.reservation.release(len(delivery.indices), delivery.tokens, _outcome_of(result))
    if not job.reservation.inputs:
        # It is done: else it and its sequences would wait for the garbage collector.
        job.queued = ()
    if job.cancelled:
        return
    if isinstance(result, errors.EngineError):
        job.sink.failed(delivery.indices, result)
    else:
        job.sink.succeeded(delivery.indices, result)


def _outcome_of(result: OutputRows | errors.EngineError) -> SequenceOutcome:
    if isinstance(result, errors.DeadlineExpiredError):
        return SequenceOutcome.EXPIRED
    return (
        SequenceOutcome.FAILED
        if isinstance(result, errors.EngineError)
        else SequenceOutcome.ANSWERED
    )


def _tell_of_fault(delivery: Delivery, fault: errors.EngineError) -> None:
    try:
        delivery.job.sink.failed(delivery.indices, fault)
    except Exception as error:  # noqa: BLE001 - others of this batch want their results
        _logger.error(  # noqa: TRY400 - what it says may hold a text
            "fault in a sink that was told of a fault", extra=fault.log_fields(error)
        )
