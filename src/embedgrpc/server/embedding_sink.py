"""From the rows of one message of a stream to its answers."""

from collections.abc import Sequence
from typing import Protocol

from embedgrpc.engine.embedding import Embedder
from embedgrpc.engine.embeddings import EmbedSpec
from embedgrpc.engine.errors import EngineError, NonFiniteOutputError
from embedgrpc.engine.pipeline import Running
from embedgrpc.engine.rows import Rows
from embedgrpc.engine.texts import CheckedText
from embedgrpc.engine.vectors import Encoding
from embedgrpc.engine.work import Job
from embedgrpc.server.wire import embedding_wires


class Answers(Protocol):
    """Takes what became of each input."""

    def succeed(
        self, position: int, identifier: str, embedding: bytes, *, tokens: int, truncated: bool
    ) -> None:
        """Answers an input with its embedding in wire form."""
        ...

    def fail(self, position: int, identifier: str, error: EngineError) -> None:
        """Answers an input with the reason why there is no embedding."""
        ...

    def finished(self, sink: "EmbeddingSink") -> None:
        """Forget a message of which every input is answered."""
        ...


class EmbeddingSink:
    """Takes the rows of one batch message; see `embedgrpc.engine.work.Sink`.

    Args:
        stream: Takes the answers.
        embedder: Embeds.
        spec: How.
        encoding: How numbers are written.
        checked: The texts.
        positions: Their places in the stream.
        ids: Their ids.

    Attributes:
        running: The job; to be set once it was started.
    """

    def __init__(
        self,
        *,
        stream: Answers,
        embedder: Embedder,
        spec: EmbedSpec,
        encoding: Encoding,
        checked: list[CheckedText],
        positions: list[int],
        ids: list[str],
    ) -> None:
        self.running: Running | None = None
        self._stream = stream
        self._embedder = embedder
        self._spec = spec
        self._encoding = encoding
        self._checked = checked
        self._positions = positions
        self._ids = ids
        self._missing = len(ids)

    def succeeded(self, indices: Sequence[int], rows: Rows) -> None:
        """Takes rows; see `embedgrpc.engine.work.Sink`."""
        zero = self._embedder.has_no_direction(rows, self._spec)
        if zero.any():
            error = NonFiniteOutputError("a vector of zeros has no direction")
            self.failed([indices[row] for row in zero.nonzero()[0].tolist()], error)
            kept = (~zero).nonzero()[0].tolist()
            indices, rows = [indices[row] for row in kept], rows.keep(kept)
        if not indices:
            return
        embeddings = self._embedder.finish(self._job(), self._checked, indices, rows, self._spec)
        wires = embedding_wires(
            embeddings,
            encoding=self._encoding,
            sparse_dimensions=self._embedder.metadata.sparse_dimensions,
        )
        for row, index in enumerate(indices):
            self._stream.succeed(
                self._positions[index],
                self._ids[index],
                wires[row],
                tokens=embeddings.token_counts[row],
                truncated=embeddings.truncated[row],
            )
        self._count(len(indices))

    def failed(self, indices: Sequence[int], error: EngineError) -> None:
        """Takes a failure; see `embedgrpc.engine.work.Sink`."""
        for index in indices:
            self._stream.fail(self._positions[index], self._ids[index], error)
        self._count(len(indices))

    def cancel(self) -> None:
        """Drop what has not been run. Nothing is delivered from here on."""
        if self.running is not None:
            self.running.cancel()
            self.running = None

    def _job(self) -> Job:
        if self.running is None:
            raise RuntimeError("rows came before the job was started")
        return self.running.job

    def _count(self, inputs: int) -> None:
        self._missing -= inputs
        if not self._missing and self.running is not None:
            # The job holds this sink, too.
            self.running = None
            self._stream.finished(self)
