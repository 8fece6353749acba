"""A collection in BEIR's layout: documents, queries, and which documents answer which query.

Each file is checked before any text is sent. Documents are read a second time when they are sent,
so that only their ids stay in memory.
"""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from embedgrpc.client.bulk.line_source import Lines
from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.suggestions import quote

_CORPUS: Final = "corpus.jsonl"
_QUERIES: Final = "queries.jsonl"
_QRELS_COLUMNS: Final = 3


class Dataset:
    """The documents, queries and judgements of a folder.

    Args:
        folder: Has `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`.
        split: The name of the judgements.

    Attributes:
        ids: The id of each document, in the order of the file.
        queries: The texts of the queries to evaluate, by id: those with a relevant document.
        relevant: The gain of each relevant document, by query and document. Above 0.
        without_relevant: The number of judged queries that have no relevant document.

    Raises:
        UsageError: A file is missing or malformed; the message names it, and the line.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._corpus = folder / _CORPUS
        self.ids: list[str] = []
        self._lines = array("L")  # the line of each document
        places: dict[str, int] = {}
        for line, record in _records(self._corpus):
            identifier = _id(record, line)
            if identifier in places:
                raise line.error(f"has the id of line {self._lines[places[identifier]]}")
            _document_text(record, line)
            places[identifier] = len(self.ids)
            self.ids.append(identifier)
            self._lines.append(line.number)
        if not self.ids:
            raise UsageError(f"{self._corpus} has no documents")
        texts: dict[str, str] = {}
        for line, record in _records(folder / _QUERIES):
            identifier = _id(record, line)
            if identifier in texts:
                raise line.error("has the id of a line before it")
            texts[identifier] = _text(record, "text", line)
        judgements = _qrels_path(folder, split)
        judged = _read_judgements(judgements, texts)
        self.relevant = {
            query: {document: gain for document, gain in gains.items() if gain > 0}
            for query, gains in judged.items()
        }
        self.without_relevant = sum(not gains for gains in self.relevant.values())
        self.relevant = {query: gains for query, gains in self.relevant.items() if gains}
        known = {document for gains in self.relevant.values() for document in gains}
        self.absent = len(known - places.keys())
        if not self.relevant or self.absent == len(known):
            raise UsageError(f"{judgements} judges no document of {self._corpus} as relevant")
        self.queries = {query: texts[query] for query in texts if query in self.relevant}
        self._own = {query: places[query] for query in self.queries if query in places}

    def documents(self) -> Iterator[tuple[int, str]]:
        """Yield the number of each document and its text: the title, if any, then the text."""
        for number, (line, record) in enumerate(_records(self._corpus)):
            if number >= len(self.ids) or _id(record, line) != self.ids[number]:
                raise UsageError(f"{self._corpus} has changed since it was checked")
            yield number, _document_text(record, line)

    def place(self, number: int) -> str:
        """Return the file and line of a document."""
        return f"{self._corpus}: line {self._lines[number]}"

    def own_document(self, query: str) -> int | None:
        """Return the number of the document whose id is that of a query; None if there is none."""
        return self._own.get(query)


class _Line:
    """Where a record stands, for errors."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    @property
    def number(self) -> int:
        return self._lines.number

    def error(self, what: str) -> UsageError:
        return self._lines.error(what)


def _records(path: Path) -> Iterator[tuple[_Line, dict[str, Any]]]:
    """Yield the objects of a file of JSON Lines; blank lines are none."""
    with _open(path) as file:
        lines = Lines(file, path)
        line = _Line(lines)
        for text in lines:
            if text.isspace():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise line.error("is not a JSON object")
            yield line, record


def _open(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    return path.open("rb")


def _id(record: dict[str, Any], line: _Line) -> str:
    identifier = record.get("_id", record.get("id"))
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        return str(identifier)
    if not isinstance(identifier, str) or not identifier:
        raise line.error('has no "_id"')
    return identifier


def _text(record: dict[str, Any], name: str, line: _Line) -> str:
    text = record.get(name)
    if not isinstance(text, str):
        raise line.error(f'has no text in "{name}"')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Without its cause, which holds the text.
        raise line.error(f'has a lone surrogate at character {error.start} of "{name}"') from None
    return text


def _document_text(record: dict[str, Any], line: _Line) -> str:
    text = _text(record, "text", line)
    if record.get("title") is None:
        return text
    return f"{_text(record, 'title', line)} {text}".strip()


def _qrels_path(folder: Path, split: str) -> Path:
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        splits = sorted(one.stem for one in (folder / "qrels").glob("*.tsv"))
        found = f": --split can be {', '.join(splits)}" if splits else ""
        raise UsageError(f"{path} is not a file{found}")
    return path


def _read_judgements(path: Path, queries: dict[str, str]) -> dict[str, dict[str, int]]:
    """Return the gain of each judged pair, by query and document."""
    judged: dict[str, dict[str, int]] = {}
    with _open(path) as file:
        lines = Lines(file, path)
        for text in lines:
            if text.isspace():
                continue
            fields = text.rstrip("\r\n").split("\t")
            if len(fields) != _QRELS_COLUMNS:
                raise lines.error(
                    f"has {len(fields)} fields, not the query, the document and the relevance"
                    " between tabs"
                )
            query, document, relevance = fields
            try:
                gain = int(relevance)
            except ValueError:
                if lines.number == 1:
                    continue  # the names of the columns
                raise lines.error(
                    f"has a relevance that is no whole number: {quote(relevance)}"
                ) from None
            if query not in queries:
                raise lines.error(f"has a query that is not in {_QUERIES}: {quote(query)}")
            if document in judged.setdefault(query, {}):
                raise lines.error(
                    f"judges the document {quote(document)} again for the query {quote(query)}"
                )
            judged[query][document] = gain
    return judged
