"""Runs batches on a backend that may be away, and meanwhile on a twin of it that never is."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from embedgrpc.backends.base import (
    NO_CONTEXT,
    Availability,
    Backend,
    BackendCancelledError,
    BackendDeadlineError,
    BackendUnreachableError,
    FloatArray,
    PaddedBatch,
    RunContext,
)

_logger = logging.getLogger(__name__)


class FallbackBackend:
    """A backend elsewhere, and a twin of it in this process that runs what it cannot.

    Both give the same answers; that is for whoever brings them together to see to. It runs as
    many batches at once as the one elsewhere does. Of those that come to the twin, as many run as
    it has lanes, and the others wait their turn.

    Args:
        upstream: What runs the model, unless it is away; its runs must end once it is. Closed
            with this one, as is the twin.
        availability: Whether it can be reached.
        twin: Runs the same model in this process.
        model: The model's name, for the log.
    """

    def __init__(
        self, upstream: Backend, availability: Availability, twin: Backend, *, model: str
    ) -> None:
        self._upstream = upstream
        self._upstream_availability = availability
        self._twin = twin
        self._model = model
        # Guards what follows; tells of free lanes of the twin, of cancellation and of the end.
        self._changed = threading.Condition()
        self._running_on_twin = 0
        self._closing = False
        self._twin_closed = False
        # Never set: there is always somebody to run the model.
        self.availability = Availability()
        availability.watch(self._note_availability)

    @property
    def lanes(self) -> int:
        """How many batches the one elsewhere can run at once."""
        return self._upstream.lanes

    @property
    def lanes_compete(self) -> bool:
        """Whether batches that run at once take longer, elsewhere."""
        return self._upstream.lanes_compete

    @property
    def parallelism(self) -> int:
        """How many batches the one elsewhere runs in the time of one."""
        return self._upstream.parallelism

    @property
    def device(self) -> str:
        """Where the model runs as long as nothing is wrong."""
        return self._upstream.device

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Runs a batch elsewhere, or on the twin where that is away or goes away.

        Args:
            batch: What to run.
            context: For whom. A run of the twin that has begun is not ended early.

        Returns:
            For each name of `batch.outputs` a float32 array [batch, ...].

        Raises:
            BackendUnreachableError: Both are being closed.
            BackendOverloadedError: The one elsewhere has more work than it takes.
            BackendDeadlineError: The context's deadline passed first.
            BackendCancelledError: The context was cancelled first.
            BackendError: The run failed.
        """
        try:
            return self._upstream.run(batch, context)
        except BackendUnreachableError as problem:
            # That it went away for good, or for a while, is told once and not by every batch.
            if self._upstream_availability.available and not self._closing:
                _logger.warning(
                    "batch left to the fallback",
                    extra={"model": self._model, "problem": str(problem)},
                )
        with self._lane_of_twin(context):
            return self._twin.run(batch, context)

    def close(self) -> None:
        """Ends runs elsewhere and what waits; blocks until the twin's runs have ended."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._upstream.close()
        with self._changed:
            # Each ends by itself, and none begins any more.
            self._changed.wait_for(lambda: not self._running_on_twin)
            was_closed, self._twin_closed = self._twin_closed, True
        if not was_closed:
            self._twin.close()

    @contextmanager
    def _lane_of_twin(self, context: RunContext) -> Iterator[None]:
        """Waits for a lane of the twin, and holds it.

        Raises:
            BackendUnreachableError: The backend is being closed.
            BackendDeadlineError: None was free before the deadline.
            BackendCancelledError: None was free before nobody waited any more.
        """
        cancellation = context.cancellation
        cancellation.add_callback(self._wake)
        try:
            with self._changed:
                left_s = min(max(context.deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)
                self._changed.wait_for(
                    lambda: self._closing or cancellation.cancelled or self._has_free_lane, left_s
                )
                if self._closing:
                    raise BackendUnreachableError("the backend is being closed")
                if cancellation.cancelled:
                    raise BackendCancelledError("nobody waits for the batch any more")
                if not self._has_free_lane or context.deadline <= time.monotonic():
                    raise BackendDeadlineError("the deadline passed before the fallback was free")
                self._running_on_twin += 1
        finally:
            cancellation.remove_callback(self._wake)
        try:
            yield
        finally:
            with self._changed:
                self._running_on_twin -= 1
                self._changed.notify_all()

    @property
    def _has_free_lane(self) -> bool:
        return self._running_on_twin < self._twin.lanes

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _note_availability(self, available: bool) -> None:  # noqa: FBT001 - as watchers are called
        fields = {"model": self._model, "device": self.device, "fallback": self._twin.device}
        if available:
            _logger.info("fallback not needed any more", extra=fields)
        else:
            _logger.warning("fallback takes over", extra=fields)
