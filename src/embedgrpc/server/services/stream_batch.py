"""One batch message of a StreamEmbed call: from the rows of its texts to their results."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from embedgrpc.engine.errors import EngineError, NonFiniteOutputError
from embedgrpc.engine.pipeline import JobHandle
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.results.vectors import Encoding
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.embeddings import EmbedSpec
from embedgrpc.engine.work import Job
from embedgrpc.server.calls.error_interceptor import log_fault
from embedgrpc.server.calls.open_call import request_id_field
from embedgrpc.server.contract.wire import embedding_wires


class ResultStream(Protocol):
    """Sends the result of each input of a stream."""

    def succeed(
        self, position: int, identifier: str, embedding: bytes, *, tokens: int, truncated: bool
    ) -> None:
        """Send the embedding of an input, in wire form."""
        ...

    def fail(self, position: int, identifier: str, error: EngineError) -> None:
        """Send the error of an input."""
        ...

    def finished(self, batch: "StreamBatch") -> None:
        """Forget a message whose inputs are all answered."""
        ...


class StreamBatch:
    """The sink of one batch message; see `embedgrpc.engine.work.Sink`.

    Args:
        stream: Sends the results.
        embedder: The model.
        spec: The options of the stream.
        encoding: The number format.
        first: The position in the stream of the first text.
        ids: The ids of the texts.

    Attributes:
        running: The job. The caller sets it after the start if texts are still missing; the job
            holds this sink.
        missing: The number of texts that are not answered yet.
    """

    def __init__(
        self,
        *,
        stream: ResultStream,
        embedder: Embedder,
        spec: EmbedSpec,
        encoding: Encoding,
        first: int,
        ids: list[str],
    ) -> None:
        self.running: JobHandle | None = None
        self._stream = stream
        self._embedder = embedder
        self._spec = spec
        self._encoding = encoding
        self._first = first
        self._ids = ids
        self.missing = len(ids)
        self._id_field = request_id_field()

    def succeeded(self, indices: Sequence[int], rows: OutputRows) -> None:
        """Send the results of some rows; see `embedgrpc.engine.work.Sink`."""
        job = self._job()
        if self._spec.chunking is None and not rows.are_large():
            self._send(self._pack(job, indices, rows))
            return
        # Packing them here would block the event loop.
        packing = asyncio.get_running_loop().run_in_executor(None, self._pack, job, indices, rows)
        packing.add_done_callback(partial(self._packed, job, indices))

    def failed(self, indices: Sequence[int], error: EngineError) -> None:
        """Send the errors of some texts; see `embedgrpc.engine.work.Sink`."""
        for index in indices:
            self._stream.fail(self._first + index, self._ids[index], error)
        self._count(len(indices))

    def _pack(self, job: Job, indices: Sequence[int], rows: OutputRows) -> "_Packed":
        """Encode embeddings. Safe to call from any thread."""
        zero = self._embedder.has_no_direction(rows, self._spec)
        without: list[int] = []
        if zero.any():
            without = [indices[row] for row in zero.nonzero()[0].tolist()]
            kept = (~zero).nonzero()[0].tolist()
            indices, rows = [indices[row] for row in kept], rows.keep(kept)
        if not indices:
            return _Packed(without, (), (), (), ())
        embeddings = self._embedder.finish(job, indices, rows, self._spec)
        wires = embedding_wires(
            embeddings,
            encoding=self._encoding,
            sparse_dimensions=self._embedder.properties.sparse_dimensions,
        )
        return _Packed(without, indices, wires, embeddings.token_counts, embeddings.truncated)

    def _packed(self, job: Job, indices: Sequence[int], packing: "asyncio.Future[_Packed]") -> None:
        if job.cancelled or packing.cancelled():
            return
        try:
            packed = packing.result()
        except Exception as error:  # noqa: BLE001 - a stream waits for every answer
            fault = EngineError.fault()
            log_fault(error, fault, method="StreamEmbed", id_field=self._id_field)
            self.failed(indices, fault)
        else:
            self._send(packed)

    def _send(self, packed: "_Packed") -> None:
        if packed.without_direction:
            error = NonFiniteOutputError("a vector of zeros has no direction")
            self.failed(packed.without_direction, error)
        rows = zip(packed.indices, packed.wires, packed.token_counts, packed.truncated, strict=True)
        for index, wire, tokens, truncated in rows:
            self._stream.succeed(
                self._first + index, self._ids[index], wire, tokens=tokens, truncated=truncated
            )
        self._count(len(packed.indices))

    def cancel(self) -> None:
        """Drop the texts that have not been run. No result is delivered after that."""
        if self.running is not None:
            self.running.cancel()
            self.running = None

    def _job(self) -> Job:
        if self.running is None:
            raise RuntimeError("rows came before the job was started")
        return self.running.job

    def _count(self, inputs: int) -> None:
        self.missing -= inputs
        if inputs and not self.missing and self.running is not None:
            # The job holds this sink. Without this, both would wait for the garbage collector.
            self.running = None
            self._stream.finished(self)


@dataclass(frozen=True, slots=True)
class _Packed:
    """Results of some texts: those whose vectors are zero, and the others row by row."""

    without_direction: Sequence[int]
    indices: Sequence[int]
    wires: Sequence[bytes]
    token_counts: Sequence[int]
    truncated: Sequence[bool]
