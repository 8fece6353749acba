"""The ranking of more documents than one query may have. No I/O."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from typing_extensions import Unpack

from embedgrpc.client.errors import EmbedGrpcError
from embedgrpc.client.inputs import valid_texts
from embedgrpc.client.options import RerankOptions
from embedgrpc.client.result_types import RerankResult, RerankStreamReady


class LongRanking:
    """Documents that are ranked in several parts: a score depends on its document alone.

    Args:
        query: The query.
        documents: The documents.
        top_k: The limit of documents to return; None for all.
        options: The caller's options.

    Attributes:
        options: The options of the stream.

    Raises:
        TypeError: A document has the wrong type, or an option would lose documents.
        ValueError: One is not valid Unicode, or `top_k` is negative.
    """

    def __init__(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None,
        **options: Unpack[RerankOptions],
    ) -> None:
        if top_k is not None and top_k < 0:
            raise ValueError(f"top_k is {top_k}; it must be at least 0")
        self._query = query
        self._documents: Sequence[str] = valid_texts("documents", documents)
        self._top_k = top_k
        for name in ("top_n", "allow_partial"):
            if name in options:
                raise TypeError(f"rank has no option {name!r}: use top_k, or rerank")
        self._return_documents = options.get("return_documents", False)
        # Somebody waits for a ranking, unlike for most streams.
        self.options: RerankOptions = {"priority": "interactive", **options}
        self.options["return_documents"] = False
        self.options["top_n"] = top_k or 0
        self._part_size = 1
        self._scored: list[tuple[float, int]] = []

    def begin(self, ready: RerankStreamReady) -> None:
        """Note the terms of the stream, before its inputs are read."""
        self._part_size = min(ready.max_query_inputs, ready.max_in_flight_inputs)

    def inputs(self) -> Iterator[tuple[int, str, Sequence[str]]]:
        """Yield the inputs of the stream: the query with a part of the documents each."""
        for first in range(0, len(self._documents), self._part_size):
            yield first, self._query, self._documents[first : first + self._part_size]

    def add(self, result: RerankResult) -> None:
        """Add the scores of one part.

        Raises:
            EmbedGrpcError: It failed.
        """
        if result.error is not None:
            raise _placed(result.error, result.id)
        for ranked in result.ranking or ():
            self._scored.append((ranked.score, result.id + ranked.index))

    def best(self) -> list[dict[str, Any]]:
        """Return the documents, best first; equal scores keep the order of the documents."""
        self._scored.sort(key=lambda scored: (-scored[0], scored[1]))
        best: list[dict[str, Any]] = []
        for score, index in self._scored[: self._top_k]:
            row: dict[str, Any] = {"corpus_id": index, "score": score}
            if self._return_documents:
                row["text"] = self._documents[index]
            best.append(row)
        return best


def _placed(error: EmbedGrpcError, first: int) -> EmbedGrpcError:
    """Return the error of a part, with the position of its first document among all."""
    if first:
        error.message += f" (counting from document {first})"
        error.args = (error.message,)
    return error.with_traceback(None)
