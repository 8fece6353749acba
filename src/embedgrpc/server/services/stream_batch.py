"""One batch message of a stream: from the rows of its inputs to their results."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from embedgrpc.engine.errors import EngineError, NonFiniteOutputError
from embedgrpc.engine.pipeline import JobHandle
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.work import Job
from embedgrpc.server.calls.error_interceptor import log_fault
from embedgrpc.server.calls.open_call import request_id_field


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The results of some inputs, in wire form, row by row.

    Attributes:
        indices: The inputs.
        wires: Their results.
        token_counts: Tokens that the model read.
        truncated: Whether the input was truncated.
        without_direction: Inputs without a result, as their vectors are zero.
    """

    indices: Sequence[int]
    wires: Sequence[bytes]
    token_counts: Sequence[int]
    truncated: Sequence[bool]
    without_direction: Sequence[int] = ()


# Packs rows of a job. Called from any thread.
PackRows = Callable[[Job, Sequence[int], OutputRows], PackedRows]


class BatchOwner(Protocol):
    """Sends the result of each input of a stream."""

    def succeed(
        self, position: int, identifier: str, result: bytes, *, tokens: int, truncated: bool
    ) -> None:
        """Send the result of an input, in wire form."""
        ...

    def fail(self, position: int, identifier: str, error: EngineError) -> None:
        """Send the error of an input."""
        ...

    def finished(self, batch: "StreamBatch") -> None:
        """Forget a job whose inputs are all answered."""
        ...


class StreamBatch:
    """The sink of one batch message; see `embedgrpc.engine.work.Sink`.

    Args:
        stream: Sends the results.
        pack: Makes the results of some rows.
        is_slow: Whether rows take long to pack, so that it must not be done on the event loop.
        method: The method of the stream, for the log.
        places: The position of each input in the stream, and its id.

    Attributes:
        running: The job. The caller sets it after the start if inputs are still missing; the job
            holds this sink.
        missing: The number of inputs that are not answered yet.
    """

    def __init__(
        self,
        *,
        stream: BatchOwner,
        pack: PackRows,
        is_slow: Callable[[OutputRows], bool],
        method: str,
        places: Sequence[tuple[int, str]],
    ) -> None:
        self.running: JobHandle | None = None
        self._stream = stream
        self._pack = pack
        self._is_slow = is_slow
        self._method = method
        self._places = places
        self.missing = len(places)
        self._id_field = request_id_field()

    def succeeded(self, indices: Sequence[int], rows: OutputRows) -> None:
        """Send the results of some rows; see `embedgrpc.engine.work.Sink`."""
        job = self._job()
        if not self._is_slow(rows):
            self._send(self._pack(job, indices, rows))
            return
        # Packing them here would block the event loop.
        packing = asyncio.get_running_loop().run_in_executor(None, self._pack, job, indices, rows)
        packing.add_done_callback(partial(self._packed, job, indices))

    def failed(self, indices: Sequence[int], error: EngineError) -> None:
        """Send the errors of some inputs; see `embedgrpc.engine.work.Sink`."""
        for index in indices:
            self._stream.fail(*self._places[index], error)
        self._count(len(indices))

    def _packed(
        self, job: Job, indices: Sequence[int], packing: "asyncio.Future[PackedRows]"
    ) -> None:
        if job.cancelled or packing.cancelled():
            return
        try:
            packed = packing.result()
        except Exception as error:  # noqa: BLE001 - a stream waits for every answer
            fault = EngineError.fault()
            log_fault(error, fault, method=self._method, id_field=self._id_field)
            self.failed(indices, fault)
        else:
            self._send(packed)

    def _send(self, packed: PackedRows) -> None:
        if packed.without_direction:
            error = NonFiniteOutputError("a vector of zeros has no direction")
            self.failed(packed.without_direction, error)
        rows = zip(packed.indices, packed.wires, packed.token_counts, packed.truncated, strict=True)
        for index, wire, tokens, truncated in rows:
            self._stream.succeed(*self._places[index], wire, tokens=tokens, truncated=truncated)
        self._count(len(packed.indices))

    def cancel(self) -> None:
        """Drop the inputs that have not been run. No result is delivered after that."""
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
