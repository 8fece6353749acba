"""A backend whose rows a test can predict, delay and replace."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from embedgrpc.backends.base import NO_CONTEXT, PaddedBatch, RunContext
from embedgrpc.libraries.arrays import FloatArray, IntArray
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.settings import Settings

# Of the fixture `bert-cls`, which stands behind every fake.
WIDTH = 36


def vector_of(ids: IntArray) -> FloatArray:
    """Return float32 [WIDTH] that depends only on the ids, int64 [tokens], of a sequence."""
    digest = hashlib.blake2b(ids.tobytes(), digest_size=WIDTH).digest()
    values = np.frombuffer(digest, np.uint8).astype(np.float32)
    return (values + np.float32(1)) / np.float32(256)


class HashBackend:
    """Returns a row per sequence that depends only on its token ids.

    Attributes:
        lanes: How many batches it runs at once.
        device: Where it claims to run.
        answer: From the ids of a sequence to its row; may raise, too.
        batches: The batches that it was asked to run.
        running: Set whenever a run begins.
        gate: A run waits until it is set.
    """

    def __init__(self) -> None:
        self.lanes = 1
        self.lanes_compete = False
        self.can_give_way = False
        self.parallelism = 1
        self.device = "cpu"
        self.answer: Callable[[IntArray], FloatArray] = vector_of
        self.batches: list[PaddedBatch] = []
        self.running = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.closed = threading.Event()

    @property
    def sequences(self) -> int:
        """How many sequences it was asked to run."""
        return sum(len(batch.input_ids) for batch in self.batches)

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Runs a batch; see `Backend`."""
        del context
        self.batches.append(batch)
        self.running.set()
        self.gate.wait()
        rows = np.stack(
            [
                self.answer(ids[mask == 1])
                for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
        )
        return dict.fromkeys(batch.outputs, rows)

    def close(self) -> None:
        """Close; there is nothing to free."""
        self.closed.set()

    def hold(self) -> None:
        """Block runs that begin from now on."""
        self.running.clear()
        self.gate.clear()

    def release(self) -> None:
        """Unblock all runs."""
        self.gate.set()

    def open(self, model: ServedModel, graph_path: Path, settings: Settings) -> "HashBackend":
        """Return itself in place of an opened graph."""
        del model, graph_path, settings
        return self
