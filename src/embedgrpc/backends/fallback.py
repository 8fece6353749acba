"""Runs batches on a remote backend, and on a local twin while the remote one is away."""

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
    PaddedBatch,
    RunContext,
)
from embedgrpc.libraries.arrays import FloatArray

_logger = logging.getLogger(__name__)


class FallbackBackend:
    """A remote backend, and a twin in this process that takes over while the remote one is away.

    Both must return the same answers. The lanes are those of the remote backend; batches that go to
    the twin wait until one of its lanes is free.

    Args:
        upstream: The remote backend, closed with this one. Its runs must end once it is away.
        availability: Whether the remote backend can be reached.
        twin: Runs the same model in this process; closed with this backend.
        model: The model's name, for the log.
    """

    def __init__(
        self, upstream: Backend, availability: Availability, twin: Backend, *, model: str
    ) -> None:
        self._upstream = upstream
        self._upstream_availability = availability
        self._twin = twin
        self._model = model
        # Guards the next three; signals a free lane of the twin, a cancellation and the closing.
        self._changed = threading.Condition()
        self._running_on_twin = 0
        self._closing = False
        self._twin_closed = False
        # Always available: one of the two can run the model.
        self.availability = Availability()
        self.availability.endpoints = availability.endpoints
        availability.watch(self._note_availability)

    @property
    def lanes(self) -> int:
        """The lanes of the remote backend."""
        return self._upstream.lanes

    @property
    def lanes_compete(self) -> bool:
        """Whether batches on the remote backend are slower at once than one after the other."""
        return self._upstream.lanes_compete

    @property
    def can_give_way(self) -> bool:
        """False: remote runs cannot."""
        return False

    @property
    def parallelism(self) -> int:
        """The number of batches that the remote backend runs in the time of one."""
        return self._upstream.parallelism

    @property
    def device(self) -> str:
        """The device of the remote backend."""
        return self._upstream.device

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Run a batch on the remote backend, or on the twin if that is or goes away.

        Args:
            batch: The sequences and the wanted outputs.
            context: The callers' limits. A run on the twin is not ended early.

        Returns:
            For each name of `batch.outputs` a float32 array [batch, ...].

        Raises:
            BackendUnreachableError: The backend is being closed.
            BackendOverloadedError: The remote backend has more work than it accepts.
            BackendDeadlineError: The context's deadline passed first.
            BackendCancelledError: The context was cancelled first.
            BackendError: The run failed.
        """
        try:
            return self._upstream.run(batch, context)
        except BackendUnreachableError as problem:
            # While it is away, one line in the log says so, and not one per batch.
            if self._upstream_availability.available and not self._closing:
                _logger.warning(
                    "batch left to the fallback",
                    extra={"model": self._model, "problem": str(problem)},
                )
        with self._lane_of_twin(context):
            return self._twin.run(batch, context)

    def close(self) -> None:
        """End remote runs and waiting batches; block until the twin's runs have ended."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._upstream.close()
        with self._changed:
            # Each ends by itself, and no new one begins.
            self._changed.wait_for(lambda: not self._running_on_twin)
            was_closed, self._twin_closed = self._twin_closed, True
        if not was_closed:
            self._twin.close()

    @contextmanager
    def _lane_of_twin(self, context: RunContext) -> Iterator[None]:
        """Wait for a lane of the twin, and hold it.

        Raises:
            BackendUnreachableError: The backend is being closed.
            BackendDeadlineError: No lane was free before the deadline.
            BackendCancelledError: The run was cancelled first.
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
                    raise BackendCancelledError("no caller waits for the batch any more")
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

    def _note_availability(self, available: bool) -> None:  # noqa: FBT001 - the type of watchers
        fields = {"model": self._model, "device": self.device, "fallback": self._twin.device}
        if available:
            _logger.info("fallback not needed any more", extra=fields)
        else:
            _logger.warning("fallback takes over", extra=fields)
