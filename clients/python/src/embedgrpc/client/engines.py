"""Embeddings inside data engines: Ray Data, Spark, Dask, datasets, DuckDB, Polars."""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from typing_extensions import Unpack

from embedgrpc.client.batch_types import (
    NewColumns,
    add_columns,
    column_names,
    has_width,
    read_texts,
)
from embedgrpc.client.bulk.delivery import Delivery
from embedgrpc.client.bulk.feed import Feed, Key
from embedgrpc.client.bulk.part import VectorForm
from embedgrpc.client.client import Client
from embedgrpc.client.defaults import DEFAULT_BATCH_SIZE, DEFAULT_TARGET
from embedgrpc.client.errors import EmbedGrpcError, ModelChangedError
from embedgrpc.client.inputs import text_problem
from embedgrpc.client.options import EmbedOptions, embed_options
from embedgrpc.client.result_types import StreamReady, StreamResult
from embedgrpc.client.status_errors import is_resumable
from embedgrpc.client.stream import EmbedStream
from embedgrpc.client.suggestions import quote
from embedgrpc.client.vector_array import require_dense

_logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 300.0
_FIRST_DELAY_S: Final = 0.2
_DELAY_S_MAX: Final = 10.0
_SCALE: Final = "scale"
_KEY_VARIABLE: Final = "EMBEDGRPC_API_KEY"
_TOKEN_VARIABLE: Final = "EMBEDGRPC_TOKEN"  # noqa: S105 -- the name of a variable


class EmbedBatch:
    """Adds embeddings to the batches of a data engine.

    Call it with a batch: a dict of columns, an Arrow table or record batch, or a DataFrame of
    pandas or Polars. It returns a batch of the same type, with a column of vectors and a column of
    errors: null, or the reason why the row has no vector. A row that fails leaves the others alone.

    It may be pickled at any time, and the process may fork: each process has a connection of its
    own, from its first batch on. Threads may share it.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        text_column: str = "text",
        embedding_column: str = "embedding",
        error_column: str = "error",
        model: str = "",
        fingerprint: str = "",
        batch_size: int = DEFAULT_BATCH_SIZE,
        patience_s: float = _PATIENCE_S,
        api_key: str = "",
        client_settings: Mapping[str, Any] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> None:
        """Check the settings; connect later.

        Args:
            target: HOST:PORT of the server. All workers must reach it.
            text_column: The column to embed.
            embedding_column: The name of the new column of vectors. With "int8", there is a column
                `scale`, too.
            error_column: The name of the new column of errors.
            model: The id or an alias of a model; "" for the server's default.
            fingerprint: The embedding space that the vectors must belong to; "" for that of the
                first batch of each process.
            batch_size: The limit of texts in one message.
            patience_s: The longest time without a result, in seconds: a server may restart
                meanwhile.
            api_key: The API key of the caller; "" for the environment variable
                EMBEDGRPC_API_KEY or EMBEDGRPC_TOKEN of the process that connects. A pickle holds
                a key that you give here.
            client_settings: Further settings of the `Client`, such as `ca_file`.
            options: See `EmbedOptions`; only those of dense vectors. The priority is "bulk" unless
                you set another.

        Raises:
            TypeError: There is no such setting, or one has the wrong type.
            ValueError: A setting is out of range.
        """
        require_dense(options)
        embed_options(**options)
        names = (text_column, embedding_column, error_column)
        if len(set(names)) < len(names):
            raise ValueError("text_column, embedding_column and error_column must differ")
        for name, number, kind in (
            ("batch_size", batch_size, int),
            ("patience_s", patience_s, float),
        ):
            if isinstance(number, bool) or not isinstance(number, (int, kind)):
                raise TypeError(f"{name} is not a number but of type {type(number).__name__}")
        if batch_size < 1 or patience_s < 0:
            raise ValueError("batch_size must be at least 1, and patience_s at least 0")
        if "target" in (client_settings or {}):
            raise TypeError("client_settings have 'target', which is an argument of its own")
        self._target = target
        self._text_column = text_column
        self._names = (embedding_column, _SCALE, error_column)
        self._model = model
        self._fingerprint = fingerprint
        self._batch_size = batch_size
        self._patience_s = patience_s
        # Named, so that a server whose model has no dense vectors says so.
        self._options: EmbedOptions = {
            "priority": "bulk",
            **options,
            "representations": ["dense"],
        }
        self._client_settings = {**(client_settings or {})}
        if api_key:
            self._client_settings["api_key"] = api_key
        self._session: _Session | None = None
        # Whatever is wrong with the settings of the client shows here, not on a worker.
        Client(target, **self._client_settings).close()

    def __call__(self, batch: Any) -> Any:
        """Embed a batch.

        Args:
            batch: The batch; it stays as it is.

        Returns:
            The batch with the new columns. Vectors are a FixedSizeList in Arrow, an Array in
            Polars, and an array in each row in pandas. Of a dict of numpy arrays, they are an array
            [rows, dimensions], in which rows that failed are NaN (0 for "int8" and "ubinary"); of
            a dict of lists, they are a list. "float16" and "bfloat16" arrive as float32; "ubinary"
            is binary in Arrow and Polars, and uint8 elsewhere.

        Raises:
            EmbedGrpcError: The server refuses the request, or was away for `patience_s`. Of one
                that is overloaded for so long, the rows have the errors.
            TypeError: The batch is of another type, or its column of texts is one str.
            ValueError: It lacks the column of texts, or has one of the new columns already.
        """
        values = self._read(batch)
        columns = self._embed(values, needs_width=bool(values) or has_width(batch))
        return add_columns(batch, self._names, columns)

    def map_arrow(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Embed record batches one by one, as `mapInArrow` of Spark calls it.

        Args:
            batches: `pyarrow.RecordBatch`es.

        Yields:
            Them with the new columns. Vectors are lists without a fixed size, which Spark lacks.
        """
        import pyarrow as pa  # noqa: PLC0415 -- whoever has record batches has it

        for batch in batches:
            columns = self._embed(self._read(batch)).as_arrow(fixed_size=False)
            added = {
                name: one for name, one in zip(self._names, columns, strict=True) if one is not None
            }
            yield pa.RecordBatch.from_arrays(
                [*batch.columns, *added.values()], names=[*batch.schema.names, *added]
            )

    def dimensions(self) -> int:
        """Return the length of the vectors in numbers; ask the server if need be."""
        session = self._current_session()
        session.embed({})
        return session.form.dimensions

    def arrow_schema(self, schema: Any, *, fixed_size: bool = True) -> Any:
        """Return the `pyarrow.Schema` of what comes out; ask the server if need be.

        Args:
            schema: That of what goes in.
            fixed_size: Whether lists state their size, as in what a call returns. False for what
                `map_arrow` yields.
        """
        import pyarrow as pa  # noqa: PLC0415 -- whoever has a schema has it

        made = self._embed([]).as_arrow(fixed_size=fixed_size)
        for name, column in zip(self._names, made, strict=True):
            if column is not None:
                schema = schema.append(pa.field(name, column.type))
        return schema

    def close(self) -> None:
        """Close the connection of this process. The next batch opens another."""
        session, self._session = self._session, None
        if session is not None and session.process_id == os.getpid():
            session.client.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def __repr__(self) -> str:
        # No other settings: they may be secret.
        model = f", model={self._model!r}" if self._model else ""
        return f"EmbedBatch({self._target!r}, text_column={self._text_column!r}{model})"

    def _read(self, batch: Any) -> list[Any]:
        """Return the values of the column of texts."""
        known = column_names(batch)
        for name in self._names:
            if name in known and (name != _SCALE or self._options.get("encoding") == "int8"):
                raise ValueError(
                    f"the batch has a column {quote(name)} already: rename it, or set"
                    " embedding_column and error_column"
                )
        return read_texts(batch, self._text_column)

    def _embed(self, values: list[Any], *, needs_width: bool = True) -> NewColumns:
        errors: list[str | None] = [text_problem(value) or None for value in values]
        texts = {row: value for row, value in enumerate(values) if errors[row] is None}
        results: Mapping[int, StreamResult] = {}
        width = 0
        dtype: Any = np.float32
        if needs_width:
            session = self._current_session()
            results = session.embed(texts)
            width, dtype = session.form.width_of(session.form.dimensions), session.form.dtype
        vectors = np.zeros((len(values), width), dtype)
        scales = np.zeros(len(values), np.float32)
        for row, result in results.items():
            if result.error is not None:
                errors[row] = str(result.error)
            else:
                vectors[row] = result.vector
                scales[row] = result.scale
        encoding = self._options.get("encoding")
        return NewColumns(
            vectors,
            scales if encoding == "int8" else None,
            errors,
            is_bits=encoding == "ubinary",
        )

    def _current_session(self) -> "_Session":
        """Return the session of this process; two threads may make one each at first."""
        session = self._session
        if session is None or session.process_id != os.getpid():
            if session is not None:
                # Of the process before a fork: its channel must not be closed here.
                _sessions_of_parents.append(session)
            session = self._session = _Session(
                Client(self._target, **self._with_credentials()),
                functools.partial(
                    Client.embed_stream,
                    model=self._model,
                    order="completion",
                    batch_size=self._batch_size,
                    reconnect_s=0,
                    **self._options,
                ),
                self._options,
                patience_s=self._patience_s,
                fingerprint=self._fingerprint,
            )
        return session

    def _with_credentials(self) -> dict[str, Any]:
        """Return the settings of the client, with a key or token of the environment."""
        options = dict(self._client_settings)
        if not (options.get("api_key") or options.get("token")):
            options["api_key"] = os.environ.get(_KEY_VARIABLE, "")
            options["token"] = "" if options["api_key"] else os.environ.get(_TOKEN_VARIABLE, "")
        return options


class _Session:
    """The connection of one process.

    Args:
        client: The client.
        open_stream: Opens a stream of a client for inputs.
        options: The options of the stream.
        patience_s: The longest time without a result, in seconds.
        fingerprint: The embedding space that is due; "" for that of the first stream.

    Attributes:
        process_id: The process.
        form: The form of the vectors; known after the first `embed`.
    """

    form: VectorForm

    def __init__(
        self,
        client: Client,
        open_stream: Callable[..., EmbedStream],
        options: EmbedOptions,
        *,
        patience_s: float,
        fingerprint: str,
    ) -> None:
        self.process_id = os.getpid()
        self.client = client
        self._open_stream = open_stream
        self._options = options
        self._patience_s = patience_s
        self._fingerprint = fingerprint
        self._is_known = False

    def embed(self, texts: Mapping[int, str]) -> Mapping[int, StreamResult]:
        """Return the result of each text, by row.

        Texts that fail only for now are sent again, until none succeeds for `patience_s`.
        """
        results: dict[int, StreamResult] = {}
        left = dict(texts)
        failures = 0
        until = time.monotonic() + self._patience_s
        while left or not self._is_known:
            results.update(self._deliver(left))
            again = [row for row in left if _failed_for_now(results[row])]
            if len(again) < len(left):
                failures = 0
                until = time.monotonic() + self._patience_s
            left = {row: texts[row] for row in again}
            if not left or time.monotonic() >= until:
                break
            asked_s = max(_retry_delay_s(results[row]) for row in again)
            delay_s = min(max(_FIRST_DELAY_S * 2**failures, asked_s), _DELAY_S_MAX)
            failures += 1
            _logger.warning("%d texts failed for now; next attempt in %.1f s", len(left), delay_s)
            time.sleep(min(delay_s, max(until - time.monotonic(), 0)))
        return results

    def _deliver(self, texts: Mapping[int, str]) -> Iterator[tuple[int, StreamResult]]:
        units = iter([([(Key(0, row), text) for row, text in texts.items()], len(texts))])
        feed = Feed(lambda: next(units, None), rows_max=len(texts) + 1)
        delivery = Delivery(
            feed,
            functools.partial(self._open_stream, self.client),
            accept=self._accept,
            patience_s=self._patience_s,
            on_trouble=_log_trouble,
        )
        try:
            for result in delivery.results():
                yield result.id.row, result
        finally:
            feed.close()

    def _accept(self, ready: StreamReady) -> None:
        """Check the model of a stream against that of those before."""
        if self._fingerprint and ready.fingerprint != self._fingerprint:
            raise ModelChangedError(
                f"the server has the model {quote(ready.model)} with the fingerprint"
                f" {ready.fingerprint}, but {self._fingerprint} is due",
                metadata={"fingerprint": ready.fingerprint, "was": self._fingerprint},
            )
        self._fingerprint = ready.fingerprint
        encoding = self._options.get("encoding", "float32")
        self.form = VectorForm(
            encoding if encoding in ("int8", "ubinary") else "float32",
            self._options.get("dimensions") or ready.dimensions,
            ("dense",),
        )
        self._is_known = True


_sessions_of_parents: Final[list[_Session]] = []


def _failed_for_now(result: StreamResult) -> bool:
    return result.error is not None and is_resumable(result.error, begun=True)


def _retry_delay_s(result: StreamResult) -> float:
    return (result.error.retry_delay_s if result.error else None) or 0.0


def _log_trouble(error: EmbedGrpcError, delay_s: float) -> None:
    _logger.warning("no answer from the server; next attempt in %.1f s: %s", delay_s, error)
