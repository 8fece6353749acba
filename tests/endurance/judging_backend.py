"""A backend with known rows that misbehaves where a text asks for it, and checks its batches."""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from embedgrpc.backends.base import NO_CONTEXT, BackendError, PaddedBatch, RunContext
from embedgrpc.libraries.arrays import FloatArray
from embedgrpc.models.graphs.outputs import POOLED_EMBEDDING
from embedgrpc.server.loading.catalog import ServedModel
from embedgrpc.server.settings.settings import Settings
from tests.endurance.findings import Findings
from tests.endurance.ledger import Ledger
from tests.endurance.texts import Kind, Vocabulary, digest_of, vector_of

# The time of a batch: that of a small model on a GPU, and sometimes far more.
_TOKEN_S = 12e-6
_SLOW_S_MAX = 0.02
_DIGEST_VALUES = 256
# Vectors before Normalize differ from those after it by this factor.
POOLED_FACTOR = np.float32(2)


class BackendFault(Exception):  # noqa: N818 - it is no BackendError
    """An exception that a backend should not raise."""


@dataclass
class _Lane(threading.local):
    """The last run of a lane's thread.

    Attributes:
        free_since: When its last run ended, and it could take the next batch.
        taken_at: The same of the batch that it runs now.
        suspects: The rows of its last batch if that failed: parts of it are run again.
    """

    free_since: float = 0.0
    taken_at: float = 0.0
    suspects: frozenset[bytes] = field(default_factory=frozenset)


class JudgingBackend:
    """Returns a row per sequence that depends only on its own tokens.

    Args:
        vocabulary: The marker tokens.
        ledger: Records every run.
        findings: Collects batches that break a rule.
        lanes: How many batches it runs at once.
        lanes_compete: What it says of them.
    """

    device = "cpu"
    can_give_way = False

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        ledger: Ledger,
        findings: Findings,
        lanes: int,
        lanes_compete: bool,
    ) -> None:
        self.lanes = lanes
        self.lanes_compete = lanes_compete
        self.parallelism = 1 if lanes_compete else lanes
        self._markers = vocabulary.markers
        self._ledger = ledger
        self._findings = findings
        self._lane = _Lane()
        self._running = threading.Semaphore(lanes)
        self._never = threading.Event()
        self._settings: Settings | None = None
        self._is_judging = False

    def open(self, model: ServedModel, graph_path: Path, settings: Settings) -> "JudgingBackend":
        """Return itself in place of an opened graph."""
        del model, graph_path
        self._settings = settings
        return self

    def judge(self) -> None:
        """Check from now on that a client waits for each row; until now only health checks ran."""
        self._is_judging = True

    def run(self, batch: PaddedBatch, context: RunContext = NO_CONTEXT) -> Mapping[str, FloatArray]:
        """Runs a batch; see `Backend`."""
        del context
        if not self._running.acquire(blocking=False):
            self._findings.add(f"more than {self.lanes} batches run at once")
            self._running.acquire()
        try:
            return self._run(batch)
        finally:
            self._running.release()

    def close(self) -> None:
        """Close; there is nothing to free."""

    def _run(self, batch: PaddedBatch) -> Mapping[str, FloatArray]:
        self._check(batch)
        lengths = batch.attention_mask.sum(axis=1).tolist()
        digests = [
            digest_of(ids[:length]) for ids, length in zip(batch.input_ids, lengths, strict=True)
        ]
        kinds = [self._markers.get(token, Kind.PLAIN) for token in batch.input_ids[:, 1].tolist()]
        lane = self._lane
        again = lane.suspects.issuperset(digests)
        if not again:
            lane.taken_at = lane.free_since
            lane.suspects = frozenset()
        if not self._is_judging:
            self._ledger.always.update(digests)
        wanted = self._ledger.began(digests, taken_at=lane.taken_at, again=again)
        try:
            return self._answer(batch, digests, kinds)
        finally:
            if not again and {*kinds} - {Kind.PLAIN, Kind.SLOW}:
                lane.suspects = frozenset(digests)
            self._ledger.ended(wanted)
            lane.free_since = time.monotonic()

    def _answer(
        self, batch: PaddedBatch, digests: Sequence[bytes], kinds: Sequence[Kind]
    ) -> dict[str, FloatArray]:
        slow_s = sum(
            digest[0] / _DIGEST_VALUES * _SLOW_S_MAX
            for digest, kind in zip(digests, kinds, strict=True)
            if kind is Kind.SLOW
        )
        self._never.wait(batch.input_ids.size * _TOKEN_S + slow_s)
        if Kind.BROKEN in kinds:
            raise BackendError("the run failed")
        if Kind.FAULTY in kinds:
            raise BackendFault("the backend has a bug")
        rows = np.stack([vector_of(digest) for digest in digests])  # [batch, WIDTH] float32
        rows[[kind is Kind.SPOILT for kind in kinds]] = math.nan
        if Kind.INFECTIOUS in kinds:
            rows[:] = math.nan
        return {
            output: rows * POOLED_FACTOR if output == POOLED_EMBEDDING else rows
            for output in batch.outputs
        }

    def _check(self, batch: PaddedBatch) -> None:
        """Record a wrong size or padding of a batch."""
        rows, longest = batch.input_ids.shape
        limits = self._settings
        if limits and rows > limits.batch_sequences:
            self._findings.add(f"a batch has {rows} rows; the limit is {limits.batch_sequences}")
        if limits and rows > 1 and rows * longest > limits.batch_tokens:
            self._findings.add(
                f"a batch of {rows} rows has {rows * longest} tokens; the limit is"
                f" {limits.batch_tokens}"
            )
        lengths = batch.attention_mask.sum(axis=1)
        if lengths.max() != longest:
            self._findings.add(f"a batch of {longest} columns has {lengths.max()} tokens at most")
        expected = np.arange(longest) < lengths[:, None]
        if not np.array_equal(batch.attention_mask, expected) or batch.input_ids[~expected].any():
            self._findings.add("a batch is padded wrongly")
