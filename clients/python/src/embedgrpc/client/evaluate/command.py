"""The command `embedgrpc-client evaluate`."""

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.client import Client
from embedgrpc.client.errors import (
    InvalidRequestError,
    ModelChangedError,
    ModelNotFoundError,
    UnsupportedError,
)
from embedgrpc.client.evaluate.best_documents import BestDocuments, IdOrder
from embedgrpc.client.evaluate.dataset import Dataset
from embedgrpc.client.evaluate.lasting_results import Inputs, lasting_results
from embedgrpc.client.evaluate.measures import RECALL_CUT, Quality, mean_quality, quality_of
from embedgrpc.client.evaluate.table import Row, show_table
from embedgrpc.client.evaluate.vector_forms import BYTES_OF_FORMS, BlockScores, Floats, shorten
from embedgrpc.client.model_description import Model
from embedgrpc.client.progress_bar import ProgressBar
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.client.similarity import SIMILARITIES
from embedgrpc.client.suggestions import quote
from embedgrpc.client.vector_array import for_documents, for_queries

_BLOCK_DOCUMENTS: Final = 2048
_PROMPTS: Final = ("input_type", "prompt_name", "prompt_text")


def evaluate(client: Client, arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code: 1 if texts failed.

    Raises:
        UsageError: The dataset or the options do not allow it.
        EmbedGrpcError: The server was away or overloaded for longer than the patience.
        OSError: A file cannot be read.
    """
    try:
        return _Evaluation(client, arguments).run()
    except (InvalidRequestError, ModelNotFoundError, UnsupportedError) as error:
        # Of the stream: a text that fails alone raises nothing.
        raise UsageError(str(error)) from error


class _Evaluation:
    """The state of one evaluation."""

    def __init__(self, client: Client, arguments: argparse.Namespace) -> None:
        self._client = client
        self._arguments = arguments
        self._dataset = Dataset(Path(arguments.dataset), arguments.split)
        self._failed_queries = 0
        self._failed_documents = 0
        self._first_failure = ""
        self._first_ready: StreamReady | None = None
        self._model: Model
        self._searches: dict[tuple[int, str], BestDocuments]
        self._queries_by_dimensions: dict[int, Floats]

    def run(self) -> int:
        """Embed, search, and print the figures."""
        queries, has_vector = self._embed_queries()
        self._model = self._client.get_model(self._ready.model)
        dimensions = self._dimensions()
        self._queries_by_dimensions = {one: self._shorten(queries, one) for one in dimensions}
        order = IdOrder(self._dataset.ids)
        # One more: the document with the id of the query may be left out.
        kept = dict.fromkeys(self._arguments.vectors, RECALL_CUT + 1)
        kept |= {form: self._arguments.candidates + 1 for form in kept if "+" in form}
        self._searches = {
            (one, form): BestDocuments(len(queries), kept[form], order)
            for one in dimensions
            for form in self._arguments.vectors
        }
        self._search()
        rows = [
            Row(form, one, BYTES_OF_FORMS[form](one), self._quality(best, has_vector))
            for (one, form), best in self._searches.items()
        ]
        self._print(rows)
        return self._report_failures()

    def _embed_queries(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Return float32 [queries, dimensions], and whether each query has a vector."""
        texts = self._dataset.queries
        names = list(texts)
        vectors: dict[int, Any] = {}
        for result in self._results("query", iter(enumerate(texts.values()))):
            if self._note(result, f"the query {quote(names[result.id])}"):
                vectors[result.id] = result.vector
            else:
                self._failed_queries += 1
        if not vectors:
            raise UsageError(f"all {len(texts)} queries failed: {self._first_failure}")
        queries = np.zeros((len(texts), len(next(iter(vectors.values())))), np.float32)
        for number, vector in vectors.items():
            queries[number] = vector
        return queries, np.isin(np.arange(len(texts)), list(vectors))

    def _search(self) -> None:
        """Embed the documents, and compare them with the queries block by block."""
        numbers: list[int] = []
        rows: list[Any] = []
        bar = ProgressBar(len(self._dataset.ids), "documents")
        for result in self._results("document", self._dataset.documents()):
            if self._note(result, self._dataset.place(result.id)):
                numbers.append(result.id)
                rows.append(result.vector)
            else:
                self._failed_documents += 1
            bar.add(1)
            if len(rows) == _BLOCK_DOCUMENTS:
                self._add(numbers, rows)
        self._add(numbers, rows)
        bar.end()

    def _add(self, numbers: list[int], rows: list[Any]) -> None:
        """Compare a block of documents with all queries; clear the lists."""
        if not rows:
            return
        block, places = np.stack(rows), np.array(numbers, np.int64)
        for dimensions, queries in self._queries_by_dimensions.items():
            documents = self._shorten(block, dimensions)
            scores = BlockScores(queries, documents, self._model.similarity)
            for form in self._arguments.vectors:
                self._searches[dimensions, form].add(places, *scores.of(form))
        numbers.clear()
        rows.clear()

    def _quality(self, best: BestDocuments, has_vector: NDArray[np.bool_]) -> Quality:
        qualities = []
        for index, (query, found) in enumerate(
            zip(self._dataset.queries, best.ranked(), strict=True)
        ):
            if not has_vector[index]:
                qualities.append(Quality(0.0, 0.0, 0.0))
                continue
            numbers = found.tolist()
            own = self._dataset.own_document(query)
            if self._arguments.ignore_identical_ids and own in numbers:
                numbers.remove(own)
            ids = [self._dataset.ids[number] for number in numbers[:RECALL_CUT]]
            qualities.append(quality_of(ids, self._dataset.relevant[query]))
        return mean_quality(qualities)

    def _results(self, role: str, inputs: Inputs) -> Iterator[StreamResult]:
        """Yield the results of queries or documents."""
        given = {
            name: getattr(self._arguments, f"{role}_{name}")
            for name in _PROMPTS
            if getattr(self._arguments, f"{role}_{name}") is not None
        }
        open_stream = functools.partial(
            self._client.embed_stream,
            model=self._arguments.model,
            order="completion",
            batch_size=self._arguments.batch_size,
            reconnect_s=self._arguments.patience,
            truncation=self._arguments.truncation,
            max_tokens=self._arguments.max_tokens,
            **(for_queries if role == "query" else for_documents)(given),
        )
        return lasting_results(
            open_stream, inputs, accept=self._accept, patience_s=self._arguments.patience
        )

    def _accept(self, ready: StreamReady) -> None:
        """Note the terms of a stream; those of the first hold for all.

        Raises:
            ModelChangedError: It has another model.
        """
        if self._first_ready is None:
            self._first_ready = ready
        was = self._ready.fingerprint
        if ready.fingerprint != was:
            raise ModelChangedError(
                "the server has another model since the evaluation began: its fingerprint is"
                f" {ready.fingerprint} and was {was}",
                metadata={"fingerprint": ready.fingerprint, "was": was},
            )

    @property
    def _ready(self) -> StreamReady:
        """The terms of the first stream."""
        if self._first_ready is None:
            raise RuntimeError("no stream has begun")
        return self._first_ready

    def _note(self, result: StreamResult, place: str) -> bool:
        """Note the failure of the text at a place; return whether it has a vector."""
        if result.error is not None:
            self._first_failure = self._first_failure or f"{place}: {result.error}"
            return False
        if result.vector is None:
            raise UsageError("the model has no dense vectors")
        return True

    def _dimensions(self) -> list[int]:
        """Return the dimensions to evaluate."""
        model, ready = self._model, self._ready
        if model.similarity not in SIMILARITIES:
            raise UsageError(
                f"the model {model.id!r} compares vectors by {model.similarity}: evaluate knows"
                f" {', '.join(SIMILARITIES)}"
            )
        for one in self._arguments.dimensions:
            if one == ready.dimensions or one in model.matryoshka_dimensions:
                continue
            if not model.any_dimensions or one > ready.dimensions:
                known = sorted({ready.dimensions, *model.matryoshka_dimensions}, reverse=True)
                raise UsageError(
                    f"the model {model.id!r} has no vectors of {one} dimensions, but"
                    f" {'up to ' if model.any_dimensions else ''}{', '.join(map(str, known))}"
                )
        return self._arguments.dimensions or [ready.dimensions]

    def _shorten(self, rows: Floats, dimensions: int) -> Floats:
        return shorten(rows, dimensions, normalize=self._model.normalized)

    def _print(self, rows: list[Row]) -> None:
        dataset, ready = self._dataset, self._ready
        if not self._arguments.json:
            title = (
                f"{ready.model}: {len(dataset.ids):,} documents, {len(dataset.queries):,} queries,"
                f" {self._model.similarity} similarity"
            )
            _write(title, "", *show_table(rows))
            return
        facts: dict[str, Any] = {
            "model": ready.model,
            "revision": ready.revision,
            "fingerprint": ready.fingerprint,
            "similarity": self._model.similarity,
            "documents": len(dataset.ids),
            "queries": len(dataset.queries),
            "failed_documents": self._failed_documents,
            "failed_queries": self._failed_queries,
            "queries_without_relevant": dataset.without_relevant,
            "relevant_documents_absent": dataset.absent,
            "results": [row.as_json() for row in rows],
        }
        _write(json.dumps(facts))

    def _report_failures(self) -> int:
        dataset = self._dataset
        if dataset.without_relevant:
            _tell(f"left out: queries without a relevant document: {dataset.without_relevant:,}")
        if dataset.absent:
            _tell(f"counted as missed: relevant documents not in the corpus: {dataset.absent:,}")
        if not self._first_failure:
            return 0
        _tell(
            f"{self._failed_documents:,} of {len(dataset.ids):,} documents and"
            f" {self._failed_queries:,} of {len(dataset.queries):,} queries failed: they count as"
            f" missed ({self._first_failure})"
        )
        return 1


def _write(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _tell(message: str) -> None:
    sys.stderr.write(f"embedgrpc-client: {' '.join(message.split())}\n")
