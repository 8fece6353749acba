"""Delivers the results of a batch to the sinks of its jobs."""

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
    """The model's output for some entries of a batch.

    Attributes:
        arrays: By output, float32 [batch, ...].
        positions: The entries' rows in them.
    """

    arrays: Mapping[str, FloatArray]
    positions: Sequence[int]


# The result of some entries of a batch.
BatchResult = RunResult[BatchEntry, ModelOutput]


def address_output(
    entries: Sequence[BatchEntry], output: ModelOutput, *, pad_left: bool
) -> list[Delivery]:
    """Give each job its rows of the outputs it asked for, as one delivery."""
    positions_by_job: dict[Job, list[int]] = {}
    for position, entry in zip(output.positions, entries, strict=True):
        for queued in entry:
            positions_by_job.setdefault(queued.job, []).append(position)
    return [
        _delivery(
            sequences,
            cut_rows(
                output.arrays,
                outputs=job.outputs,
                positions=positions_by_job[job],
                lengths=[queued.tokens for queued in sequences],
                pad_left=pad_left,
            ),
        )
        for job, sequences in _by_job(entries).items()
    ]


def address_failure(entries: Sequence[BatchEntry], error: errors.EngineError) -> list[Delivery]:
    """Give each job a copy of the error, because raising an error adds to it."""
    return [_delivery(sequences, copy.copy(error)) for sequences in _by_job(entries).values()]


def _by_job(entries: Sequence[BatchEntry]) -> dict[Job, list[QueuedSequence]]:
    sequences: dict[Job, list[QueuedSequence]] = {}
    for entry in entries:
        for queued in entry:
            sequences.setdefault(queued.job, []).append(queued)
    return sequences


def _delivery(sequences: list[QueuedSequence], result: OutputRows | errors.EngineError) -> Delivery:
    """Make a delivery for sequences of one job."""
    return Delivery(
        job=sequences[0].job,
        indices=[queued.index for queued in sequences],
        tokens=sum(queued.tokens for queued in sequences),
        result=result,
    )


def deliver_all(deliveries: list[Delivery]) -> None:
    """Call each job's sink. On the event loop."""
    for delivery in deliveries:
        try:
            _deliver(delivery)
        except Exception as error:  # noqa: BLE001 - the rest of the batch must still be delivered
            fault = errors.EngineError.fault()
            _logger.error(  # noqa: TRY400 - its message may contain text
                "fault in a sink", extra=fault.log_fields(error)
            )
            _deliver_fault(delivery, fault)


def _deliver(delivery: Delivery) -> None:
    job, result = delivery.job, delivery.result
    job.reservation.release(len(delivery.indices), delivery.tokens, _outcome_of(result))
    # Those of a caller who has left, too: the model read them.
    if job.call.meter is not None and not isinstance(result, errors.EngineError):
        job.call.meter.spend(delivery.tokens)
    if not job.reservation.inputs:
        job.call.times.add(job.times)
        # The job is done. Its entries refer to it: break the cycle without the garbage collector.
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


def _deliver_fault(delivery: Delivery, fault: errors.EngineError) -> None:
    try:
        delivery.job.sink.failed(delivery.indices, fault)
    except Exception as error:  # noqa: BLE001 - the rest of the batch must still be delivered
        _logger.error(  # noqa: TRY400 - its message may contain text
            "fault in a sink that was told of a fault", extra=fault.log_fields(error)
        )
