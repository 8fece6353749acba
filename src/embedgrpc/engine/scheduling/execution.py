"""Runs one batch on a backend: lays it out, runs it, finds who is to blame where it fails."""

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

# When to try again where a backend takes no more work: it does not say how much it has.
_OVERLOAD_RETRY_S = 1.0


class BatchRunner:
    """Runs the batches of one model. Safe to call from all lanes.

    Args:
        model: Id of the model, for the log.
        backend: What runs them.
        pad_token_id: The padding token.
        pad_left: Whether padding comes first.
    """

    def __init__(self, *, model: str, backend: Backend, pad_token_id: int, pad_left: bool) -> None:
        self._model = model
        self._backend = backend
        self._pad_token_id = pad_token_id
        self._pad_left = pad_left

    def run(self, batch: Batch, context: RunContext) -> list[BatchResult]:
        """Runs a batch, and again in parts where it fails. Does not raise.

        Args:
            batch: What to run.
            context: For whom.

        Returns:
            What became of every entry, each once.
        """
        first = self._attempt(batch.entries, context)
        if all(result.error is None for result in first):
            return first
        again = partial(self._attempt, context=context)
        return list(run_isolating(again, batch.entries, first))

    def address(self, results: Iterable[BatchResult]) -> list[Delivery]:
        """Gives each job its part of what came out."""
        deliveries: list[Delivery] = []
        for result in results:
            if result.output is not None:
                deliveries += address_output(result.items, result.output, pad_left=self._pad_left)
            elif result.error is not None:
                deliveries += address_failure(result.items, result.error)
        return deliveries

    def _attempt(self, entries: Sequence[BatchEntry], context: RunContext) -> list[BatchResult]:
        """Runs entries once: those that came out well, and the others with the reason."""
        try:
            batch = self._pad(entries)
            output = ModelOutput(self._backend.run(batch, context), range(len(entries)))
            return self._judge(entries, output, batch.outputs)
        except BackendUnreachableError as away:
            _logger.warning(
                "backend unavailable", extra={"model": self._model, "problem": str(away)}
            )
            error: errors.EngineError = errors.BackendUnavailableError(
                "the backend of the model is away"
            )
        except BackendOverloadedError as full:
            _logger.warning(
                "backend overloaded", extra={"model": self._model, "problem": str(full)}
            )
            error = errors.OverloadedError(
                "the backend of the model has more work than it takes",
                retry_delay_s=_OVERLOAD_RETRY_S,
            )
        except (BackendDeadlineError, BackendCancelledError):
            error = errors.DeadlineExpiredError("the deadline passed while the model was run")
        except BackendError as failure:
            # Without its causes, which may quote a token or a text.
            _logger.error(  # noqa: TRY400 - see above
                "batch failed", extra={"model": self._model, "problem": str(failure)}
            )
            error = errors.BackendFailedError("the model was run, and the run failed")
        except Exception as fault:  # noqa: BLE001 - else every later call would hang
            error = errors.EngineError.fault()
            _logger.error(  # noqa: TRY400 - what it says may hold a text
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
        """Tell entries whose numbers are finite from the others.

        Raises:
            BackendError: There are more rows, or fewer, than were asked for.
        """
        wanted = [output.arrays[name] for name in outputs]
        for one in wanted:
            if len(one) != len(entries):
                raise BackendError(f"the model answered {len(one)} rows for {len(entries)} texts")
        # As a rule all of it is, padding included, and no entry need be looked at by itself.
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
        error = errors.NonFiniteOutputError("the model answered with NaN or infinity")
        bad = list(compress(entries, ~good))
        results: list[BatchResult] = [RunResult(bad, None, error)]
        if good.any():
            kept = ModelOutput(output.arrays, good.nonzero()[0].tolist())
            results.append(RunResult(list(compress(entries, good)), kept, None))
        return results
