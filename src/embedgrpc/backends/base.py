"""What the engine needs of whatever runs a model."""

from collections.abc import Mapping
from dataclasses import dataclass
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


class BackendError(Exception):
    """The model was run, and the run failed. The message never holds an input."""


class BackendUnavailableError(BackendError):
    """What runs the model cannot be reached now; the same batch may succeed later."""


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

    def run(self, batch: PaddedBatch) -> Mapping[str, FloatArray]:
        """Runs the model.

        Args:
            batch: What to run.

        Returns:
            For each name of `batch.outputs` a float32 array whose first axis is the batch.

        Raises:
            BackendUnavailableError: The backend is away.
            BackendError: The run failed.
        """
        ...

    def close(self) -> None:
        """Frees what the backend holds. No run is in progress."""
        ...
