"""What the engine needs of whatever runs a model."""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Sequences of one model, padded to the length of the longest.

    Attributes:
        input_ids: int64 [batch, tokens]; the padding token where the mask is 0.
        attention_mask: int64 [batch, tokens]; 1 for a real token, 0 for padding.
        token_type_ids: int64 [batch, tokens]; 1 for the second text of a pair.
        outputs: Names of the graph's outputs that are wanted.
    """

    input_ids: IntArray
    attention_mask: IntArray
    token_type_ids: IntArray
    outputs: tuple[str, ...]


class Cancellation:
    """Tells a run that nobody waits for it any more. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._cancelled

    def cancel(self) -> None:
        """Says that nobody waits any more, for good; tells it to everybody, each once."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Has something called on cancellation, in the thread that cancels; at once if it was."""
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return
        callback()

    def remove_callback(self, callback: Callable[[], object]) -> None:
        """Takes back what `add_callback` was given; without effect where it was called."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


@dataclass(frozen=True, slots=True)
class RunContext:
    """For whom a batch is run.

    Attributes:
        deadline: When the last of those who wait for it stops waiting, in seconds of
            `time.monotonic`; infinity where somebody waits for ever.
        metadata: Keys and values to pass on to whatever runs the model, such as traceparent.
        cancellation: Whether anybody waits at all.
    """

    deadline: float = math.inf
    metadata: tuple[tuple[str, str], ...] = ()
    cancellation: Cancellation = field(default_factory=Cancellation)


# For who waits as long as it takes, and is nobody's caller. Nothing ever cancels it.
NO_CONTEXT = RunContext()


class Availability:
    """Whether what runs a model can be reached, for whoever wants to know when that changes.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._available = True
        self._watchers: list[Callable[[bool], None]] = []

    @property
    def available(self) -> bool:
        """Whether it can be reached."""
        return self._available

    def set(self, available: bool) -> None:  # noqa: FBT001 - the only thing to say
        """Says whether it can be reached; tells watchers in this thread if that is new."""
        with self._lock:
            if available == self._available:
                return
            self._available = available
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher(available)

    def watch(self, watcher: Callable[[bool], None]) -> None:
        """Has a watcher told of every change; of the present state too where it is away."""
        with self._lock:
            self._watchers.append(watcher)
            available = self._available
        if not available:
            watcher(available)


class BackendError(Exception):
    """The model was run, and the run failed. The message never holds an input."""


class BackendUnreachableError(BackendError):
    """What runs the model cannot be reached now; the same batch may succeed later."""


class BackendOverloadedError(BackendError):
    """What runs the model has more work than it takes; the same batch may succeed later."""


class BackendDeadlineError(BackendError):
    """The time that the batch's callers gave was over before the model had answered."""


class BackendCancelledError(BackendError):
    """The run was given up, as nobody waited for it any more."""


class DeviceError(Exception):
    """The device that was asked for cannot be used; one line that says what is missing."""


class Backend(Protocol):
    """Runs one batch at a time on each of its lanes.

    `run` is called from as many threads as there are lanes, and blocks the one it is
    called from.
    """

    @property
    def lanes(self) -> int:
        """How many batches it can run at once."""
        ...

    @property
    def lanes_compete(self) -> bool:
        """Whether batches that run at once take longer than one after the other."""
        ...

    @property
    def parallelism(self) -> int:
        """How many batches it runs in the time that one takes; other lanes share it."""
        ...

    @property
    def device(self) -> str:
        """Where it runs, such as "cpu" or "cuda:0"."""
        ...

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Runs the model.

        Args:
            batch: What to run.
            context: For whom. A backend whose runs cannot be ended takes no notice of it.

        Returns:
            For each name of `batch.outputs` a float32 array whose first axis is the batch.

        Raises:
            BackendUnreachableError: The backend is away.
            BackendOverloadedError: It has more work than it takes.
            BackendDeadlineError: The context's deadline passed first.
            BackendCancelledError: The context was cancelled first.
            BackendError: The run failed.
        """
        ...

    def close(self) -> None:
        """Frees what the backend holds. No run is in progress."""
        ...
