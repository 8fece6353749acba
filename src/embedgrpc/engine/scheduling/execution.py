"""Runs one batch on a backend, and isolates the sequences that make it fail."""

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import compress

import numpy as np

from embedgrpc.backends.base import (
    Backend,
    BackendCancelledError,
    BackendDeadlineError,
    BackendError,
    BackendOverloadedError,
    BackendUnreachableError,
    PaddedBatch,
    RunContext,
)
from embedgrpc.engine import errors
from embedgrpc.engine.results.rows import finite_rows
from embedgrpc.engine.scheduling.delivery import (
    BatchResult,
    Delivery,
    ModelOutput,
    address_failure,
    address_output,
)
from embedgrpc.engine.scheduling.dispatch import Batch
from embedgrpc.engine.scheduling.isolation import RunResult, run_isolating
from embedgrpc.engine.scheduling.padding import pad
from embedgrpc.engine.work import BatchEntry

_logger = logging.getLogger(__name__)

# When to retry if a backend is overloaded: it does not report how long its queue is.
_OVERLOAD_RETRY_S = 1.0


class BatchRunner:
    """Runs the batches of one model. Safe to call from all lanes.

    Args:
        model: Id of the model, for the log.
        backend: Runs the batches.
        pad_token_id: The padding token.
        pad_left: Whether padding comes before the tokens.
    """

    def __init__(self, *, model: str, backend: Backend, pad_token_id: int, pad_left: bool) -> None:
        self._model = model
        self._backend = backend
        self._pad_token_id = pad_token_id
        self._pad_left = pad_left

    def run(self, batch: Batch, context: RunContext) -> list[BatchResult]:
        """Run a batch, and again in parts if it fails. Does not raise.

        Returns:
            Results that hold every entry once.
        """
        first = self._attempt(batch.entries, context)
        if all(result.error is None for result in first):
            return first
        again = partial(self._attempt, context=context)
        return list(run_isolating(again, batch.entries, first))

    def address(self, results: Iterable[BatchResult]) -> list[Delivery]:
        """Turn results into deliveries to jobs."""
        deliveries: list[Delivery] = []
        for result in results:
            if result.output is not None:
                deliveries += address_output(result.items, result.output, pad_left=self._pad_left)
            elif result.error is not None:
                deliveries += address_failure(result.items, result.error)
        return deliveries

    def _attempt(self, entries: Sequence[BatchEntry], context: RunContext) -> list[BatchResult]:
        """Run entries once, those of each task by themselves."""
        by_task: dict[int, list[BatchEntry]] = {}
        for entry in entries:
            by_task.setdefault(entry[0].sequence.task, []).append(entry)
        if len(by_task) == 1:
            return self._run(entries, context)
        return [result for group in by_task.values() for result in self._run(group, context)]

    def _run(self, entries: Sequence[BatchEntry], context: RunContext) -> list[BatchResult]:
        """Run entries once; return those that succeeded and the others with the reason."""
        try:
            batch = self._pad(entries)
            output = ModelOutput(self._backend.run(batch, context), range(len(entries)))
            return self._judge(entries, output, batch.outputs)
        except BackendUnreachableError as unreachable:
            _logger.warning(
                "backend unavailable", extra={"model": self._model, "problem": str(unreachable)}
            )
            error: errors.EngineError = errors.BackendUnavailableError(
                "the model's backend cannot be reached"
            )
        except BackendOverloadedError as overload:
            _logger.warning(
                "backend overloaded", extra={"model": self._model, "problem": str(overload)}
            )
            error = errors.OverloadedError(
                "the model's backend is overloaded", retry_delay_s=_OVERLOAD_RETRY_S
            )
        except (BackendDeadlineError, BackendCancelledError):
            error = errors.DeadlineExpiredError("the deadline passed while the model ran")
        except BackendError as failure:
            # Without its causes, which may quote tokens or text.
            _logger.error(  # noqa: TRY400 - see above
                "batch failed", extra={"model": self._model, "problem": str(failure)}
            )
            error = errors.BackendFailedError("running the model failed")
        except Exception as fault:  # noqa: BLE001 - otherwise all later calls would hang
            error = errors.EngineError.fault()
            _logger.error(  # noqa: TRY400 - its message may contain text
                "fault in a lane", extra={"model": self._model, **error.log_fields(fault)}
            )
        return [RunResult(entries, None, error)]

    def _pad(self, entries: Sequence[BatchEntry]) -> PaddedBatch:
        return pad(
            [entry[0].sequence for entry in entries],
            pad_token_id=self._pad_token_id,
            left=self._pad_left,
            outputs=tuple(
                dict.fromkeys(name for entry in entries for name in entry[0].job.outputs)
            ),
        )

    def _judge(
        self, entries: Sequence[BatchEntry], output: ModelOutput, outputs: Sequence[str]
    ) -> list[BatchResult]:
        """Separate entries with finite numbers from the others.

        Raises:
            BackendError: The number of rows is wrong.
        """
        wanted = [output.arrays[name] for name in outputs]
        for one in wanted:
            if len(one) != len(entries):
                raise BackendError(f"the model returned {len(one)} rows for {len(entries)} texts")
        # Usually everything is finite, padding included, and no row needs to be checked by itself.
        # Then so is the sum, unless it is too large: that costs half as much.
        with np.errstate(over="ignore", invalid="ignore"):
            if all(np.isfinite(one.sum()) for one in wanted):
                return [RunResult(entries, output, None)]
        if all(np.isfinite(one).all() for one in wanted):
            return [RunResult(entries, output, None)]
        finite = finite_rows(
            output.arrays, lengths=[entry[0].tokens for entry in entries], pad_left=self._pad_left
        )
        good = np.array(
            [
                all(finite[name][position] for name in entry[0].job.outputs)
                for position, entry in enumerate(entries)
            ],
            np.bool_,
        )
        if good.all():
            return [RunResult(entries, output, None)]
        error = errors.NonFiniteOutputError("the model returned NaN or infinity")
        bad = list(compress(entries, ~good))
        results: list[BatchResult] = [RunResult(bad, None, error)]
        if good.any():
            kept = ModelOutput(output.arrays, good.nonzero()[0].tolist())
            results.append(RunResult(list(compress(entries, good)), kept, None))
        return results
