"""The interface between the engine and the backends, which run models."""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from embedgrpc.libraries.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Sequences of one model, padded to the length of the longest.

    Attributes:
        input_ids: int64 [batch, tokens]; the padding token where the mask is 0.
        attention_mask: int64 [batch, tokens]; 1 for a real token, 0 for padding.
        token_type_ids: int64 [batch, tokens]; 1 for the second text of a pair.
        outputs: Names of the outputs to return.
        task: The task of all sequences, if the model has several.
        prompt_tokens: int64 [batch], the tokens at the start that are not pooled; None for none.
    """

    input_ids: IntArray
    attention_mask: IntArray
    token_type_ids: IntArray
    outputs: tuple[str, ...]
    task: int = 0
    prompt_tokens: IntArray | None = None


class Cancellation:
    """A signal to a run that no caller waits for it any more. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """Whether the run is cancelled."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel the run for good, and call each callback once."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Register a callback. It runs in the cancelling thread, or now if already cancelled."""
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return
        callback()

    def remove_callback(self, callback: Callable[[], object]) -> None:
        """Remove a callback; without effect if it has been called."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


@dataclass(frozen=True, slots=True)
class RunContext:
    """The callers' limits for the run of a batch.

    Attributes:
        deadline: The latest deadline of the callers, in seconds of `time.monotonic`; infinity if
            one has none.
        metadata: Keys and values to pass on to a remote backend, such as traceparent.
        cancellation: Signals that all callers are gone.
        gives_way: Whether runs that do not give way go first; see `Backend.can_give_way`.
    """

    deadline: float = math.inf
    metadata: tuple[tuple[str, str], ...] = ()
    cancellation: Cancellation = field(default_factory=Cancellation)
    gives_way: bool = False


# For runs without a deadline, which nothing cancels.
NO_CONTEXT = RunContext()


class Availability:
    """Whether a backend can be reached; notifies watchers of changes.

    Safe to use from any thread.

    Attributes:
        endpoints: Returns which of its servers can be reached, by address.
    """

    def __init__(self) -> None:
        self.endpoints: Callable[[], Mapping[str, bool]] = dict
        self._lock = threading.Lock()
        self._available = True
        self._watchers: list[Callable[[bool], None]] = []

    @property
    def available(self) -> bool:
        """Whether the backend can be reached."""
        return self._available

    def set(self, available: bool) -> None:  # noqa: FBT001 - the only argument
        """Record whether the backend can be reached; notify watchers in this thread if changed."""
        with self._lock:
            if available == self._available:
                return
            self._available = available
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher(available)

    def watch(self, watcher: Callable[[bool], None]) -> None:
        """Notify a watcher of every change, and at once if the backend is away."""
        with self._lock:
            self._watchers.append(watcher)
            available = self._available
        if not available:
            watcher(available)


class BackendError(Exception):
    """A run failed. The message never contains an input."""


class BackendUnreachableError(BackendError):
    """The backend cannot be reached now; the same batch may succeed later."""


class BackendOverloadedError(BackendError):
    """The backend has more work than it accepts; the same batch may succeed later."""


class BackendDeadlineError(BackendError):
    """The callers' deadline passed before the model had answered."""


class BackendCancelledError(BackendError):
    """The run was cancelled: no caller waits for it any more."""


class DeviceError(Exception):
    """The configured device cannot be used; one line says what is missing."""


class Backend(Protocol):
    """Runs a model: one batch at a time on each of its lanes.

    Each lane is a thread that calls `run`, which blocks.
    """

    @property
    def lanes(self) -> int:
        """The number of batches that can run at once."""
        ...

    @property
    def lanes_compete(self) -> bool:
        """Whether batches are slower at once than one after the other."""
        ...

    @property
    def can_give_way(self) -> bool:
        """Whether a run can leave the cores to others while they need them, lanes or not.

        It may turn out later that none can.
        """
        ...

    @property
    def parallelism(self) -> int:
        """The number of batches that run in the time of one; further lanes share that time."""
        ...

    @property
    def device(self) -> str:
        """The device that runs the model, such as "cpu" or "cuda:0"."""
        ...

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Run the model.

        Args:
            batch: The sequences and the wanted outputs.
            context: The callers' limits. A backend that cannot end a run ignores them.

        Returns:
            For each name of `batch.outputs` a float32 array whose first axis is the batch.

        Raises:
            BackendUnreachableError: The backend is away.
            BackendOverloadedError: It has more work than it accepts.
            BackendDeadlineError: The context's deadline passed first.
            BackendCancelledError: The context was cancelled first.
            BackendError: The run failed.
        """
        ...

    def close(self) -> None:
        """Free all resources. No run is in progress."""
        ...
