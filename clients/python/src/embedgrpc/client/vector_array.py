"""The array that `encode` fills."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from embedgrpc.client.errors import BadResponseError, EmbedGrpcError, EncodeError
from embedgrpc.client.inputs import valid_text
from embedgrpc.client.options import EmbedOptions
from embedgrpc.client.progress_bar import ProgressBar
from embedgrpc.client.result_types import StreamReady, StreamResult

_ROWS_FIRST: Final = 1024  # where the number of texts is unknown
_PROMPTS: Final = ("input_type", "prompt_name", "prompt_text")


class VectorArray:
    """The texts of one `encode`, and the array of their vectors.

    Args:
        texts: The texts. If they have no length, the array grows.
        show_progress_bar: Whether to show progress on standard error.

    Raises:
        TypeError: They are a dict, or cannot be iterated.
    """

    def __init__(self, texts: Iterable[str], *, show_progress_bar: bool) -> None:
        if isinstance(texts, Mapping):
            raise TypeError("texts is a dict; give its values(), or use embed_stream")
        self._texts = iter(texts)
        self._count = len(texts) if isinstance(texts, Sized) else None
        self._read_count = 0
        self._vectors: NDArray[Any] | None = None
        self._is_done = np.zeros(_ROWS_FIRST if self._count is None else self._count, np.bool_)
        self._errors: dict[int, EmbedGrpcError] = {}
        self._dimensions = 0
        self._bar = ProgressBar(self._count, "texts") if show_progress_bar else None

    def inputs(self) -> Iterator[tuple[int, str]]:
        """Yield the inputs of the stream: each text with its position."""
        for position, text in enumerate(self._texts):
            valid_text(f"texts[{position}]", text)
            self._read_count = position + 1
            yield position, text

    def begin(self, ready: StreamReady) -> None:
        """Note the terms of the stream."""
        self._dimensions = ready.dimensions

    def add(self, result: StreamResult) -> None:
        """Add one result.

        Raises:
            BadResponseError: It has no vector, or one of another shape than those before.
        """
        position: int = result.id
        if result.error is not None:
            self._errors[position] = result.error
        else:
            self._rows_for(result)[position] = result.vector
            self._is_done[position] = True
        if self._bar is not None:
            self._bar.add(1)

    def vectors(self) -> NDArray[Any]:
        """Return the array: a row for each text.

        Raises:
            EncodeError: A text failed.
        """
        vectors = self._filled()
        if not self._errors:
            return vectors
        errors = dict(sorted(self._errors.items()))
        position, first = next(iter(errors.items()))
        raise EncodeError(
            f"{len(errors)} of {self._read_count} texts failed; texts[{position}]: {first.message}",
            errors=errors,
            vectors=vectors,
            is_encoded=self._is_done[: len(vectors)].copy(),
            code=first.code,
            reason=first.reason,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Show the end of the progress; raise EncodeError where vectors would be lost."""
        if self._bar is not None:
            self._bar.end()
        if isinstance(error, EmbedGrpcError) and self._vectors is not None:
            raise self._broken(error) from error

    def _broken(self, error: EmbedGrpcError) -> EncodeError:
        vectors = self._filled()
        count = self._read_count if self._count is None else self._count
        done_count = int(self._is_done.sum())
        return EncodeError(
            f"the stream ended after {done_count} of {count} texts: {error.message}",
            errors=dict(sorted(self._errors.items())),
            vectors=vectors,
            is_encoded=self._is_done[: len(vectors)].copy(),
            code=error.code,
            reason=error.reason,
            retry_delay_s=error.retry_delay_s,
        )

    def _rows_for(self, result: StreamResult) -> NDArray[Any]:
        """Return the array with a row for a result."""
        vector = result.vector
        if vector is None:
            raise BadResponseError("a result of the stream has no dense vector")
        if self._vectors is None:
            self._vectors = np.zeros((len(self._is_done), len(vector)), vector.dtype)
        if vector.shape != self._vectors.shape[1:] or vector.dtype != self._vectors.dtype:
            raise BadResponseError("the vectors of one stream differ in encoding or dimensions")
        while result.id >= len(self._is_done):
            self._is_done = np.concatenate([self._is_done, np.zeros_like(self._is_done)])
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        return self._vectors

    def _filled(self) -> NDArray[Any]:
        """Return the array; rows without a vector are NaN, or 0 where they are no floats."""
        count = self._read_count if self._count is None else self._count
        if self._vectors is None:
            vectors: NDArray[Any] = np.zeros((count, self._dimensions), np.float32)
        else:
            vectors = self._vectors[:count]
        if vectors.dtype.kind == "f":
            vectors[~self._is_done[:count]] = np.nan
        return vectors


def for_queries(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the prompt of queries, unless they name one."""
    return _with_input_type(options, "query")


def for_documents(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the prompt of documents, unless they name one."""
    return _with_input_type(options, "document")


def require_dense(options: EmbedOptions) -> None:
    """Check that options ask for nothing but dense vectors.

    Raises:
        TypeError: They ask for something else, which an array has no room for.
    """
    for name in _OTHER_RESULTS:
        if options.get(name):
            raise TypeError(
                f"there are only dense vectors here: for {name}, use embed or embed_stream"
            )


_OTHER_RESULTS: Final = (
    "representations",
    "max_sparse_terms",
    "token_vectors",
    "chunk_tokens",
    "chunk_overlap",
    "chunk_sentences",
    "chunk_spans",
)


def _with_input_type(options: Mapping[str, Any], input_type: str) -> dict[str, Any]:
    if any(options.get(name) is not None for name in _PROMPTS):
        return dict(options)
    return {**options, "input_type": input_type}
