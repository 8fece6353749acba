"""A bulk run: every row of the inputs is read, embedded and written once, also after crashes."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from embedgrpc.client.bulk.batch_options import as_requested, for_batch_files
from embedgrpc.client.bulk.batch_requests import BATCH_FORMAT
from embedgrpc.client.bulk.delivery import Delivery
from embedgrpc.client.bulk.feed import Feed, Key
from embedgrpc.client.bulk.inputs import STDIN, Inputs, spool_stdin
from embedgrpc.client.bulk.manifest import Progress
from embedgrpc.client.bulk.output import Output, Place
from embedgrpc.client.bulk.part import Part, VectorForm
from embedgrpc.client.bulk.part_files import part_format
from embedgrpc.client.bulk.problems import UsageError, arrow
from embedgrpc.client.bulk.report import Report
from embedgrpc.client.bulk.run_options import RunOptions
from embedgrpc.client.bulk.stopping import stopping
from embedgrpc.client.bulk.units import Unit
from embedgrpc.client.client import Client
from embedgrpc.client.errors import ConnectionFailedError, EmbedGrpcError
from embedgrpc.client.inputs import text_problem
from embedgrpc.client.result_types import StreamReady, StreamResult

_ADDED_COLUMNS: Final = (
    *("embedding", "scale", "error", "sparse_indices", "sparse_values"),
    *("multi_vector", "multi_vector_scales"),
)
_SPOOL: Final = "_stdin"
_OPEN_BATCHES: Final = 8
INTERRUPTED: Final = 130  # as a shell reports Ctrl-C


def run(client: Client, options: RunOptions) -> int:
    """Run to the end, or until a signal, and return the exit code.

    Returns:
        0 if every row has its embedding, 1 if rows failed, 130 after Ctrl-C.

    Raises:
        UsageError: The inputs, the options or an output made with others do not allow it.
        EmbedGrpcError: The server refuses the texts, or was away for longer than the patience.
        OSError: A file cannot be read or written.
    """
    if options.input_format == BATCH_FORMAT:
        options = for_batch_files(options)
    place = Place(options.output, options.output_format)
    if place.form in ("parquet", "arrow"):
        arrow("pyarrow", f"writing {place.form}")
    paths, stdin_sha256 = _input_paths(options, place)
    inputs = Inputs(
        paths,
        form=options.input_format or ("lines" if stdin_sha256 else ""),
        text_column=options.text_column,
        id_column=options.id_column,
        keep=options.keep,
        rows_max=options.unit_rows,
    )
    if not inputs.rows:
        raise UsageError("the inputs have no rows")
    if options.input_format == BATCH_FORMAT:
        options = as_requested(options, inputs)
    for name in (inputs.columns.id_name, *inputs.columns.keep):
        if name in _ADDED_COLUMNS:
            raise UsageError(
                f"the output has a column {name!r} of its own: rename that of the input"
            )
    identities: Any = [{"sha256": stdin_sha256}] if stdin_sha256 else inputs.identities()
    asked = {"inputs": identities, "output_format": place.form, **options.asked()}
    progress = Progress(place.folder, asked)
    try:
        if stdin_sha256:
            paths[0].replace(place.folder / _SPOOL)
            inputs.move(place.folder / _SPOOL)
        return _Run(client, options, inputs, place, progress).run()
    finally:
        progress.close()


class _Run:
    """The state of a run."""

    def __init__(
        self,
        client: Client,
        options: RunOptions,
        inputs: Inputs,
        place: Place,
        progress: Progress,
    ) -> None:
        self._client = client
        self._options = options
        self._inputs = inputs
        self._place = place
        self._progress = progress
        self._parts: dict[int, Part] = {}
        self._feed = Feed(
            self._open_unit,
            rows_max=inputs.rows_max + max(inputs.rows_max, _OPEN_BATCHES * options.batch_size),
        )
        self._writer = ThreadPoolExecutor(1, "embedgrpc-writer")
        self._served: dict[str, Any] = {}
        self._representations: tuple[str, ...] = ()
        self._truncated = 0
        # Known once the server has answered.
        self._form: VectorForm
        self._output: Output
        self._todo: Iterator[Unit]
        self._report: Report

    def run(self) -> int:
        """Run until every unit is done, or a signal comes."""
        with stopping(self._feed.stop) as stop:
            delivery = Delivery(
                self._feed,
                functools.partial(
                    self._client.embed_stream,
                    model=self._options.model,
                    order="completion",
                    batch_size=self._options.batch_size,
                    reconnect_s=0,
                    **self._options.embed,
                ),
                accept=self._accept,
                patience_s=self._options.patience_s,
                on_trouble=self._tell_trouble,
            )
            self._report = Report(self._inputs.rows)
            try:
                delivery.greet()
                self._begin()
                try:
                    for result in delivery.results():
                        self._record(result)
                finally:
                    self._feed.close()
                    self._writer.shutdown()
                self._feed.check()
            finally:
                self._report.close()
        left = sum(not self._output.is_written(unit) for unit in self._inputs.units)
        return self._end(left, was_stopped=stop.requested)

    def _begin(self) -> None:
        """Find out what is left to do."""
        columns = self._inputs.columns
        form = part_format(self._place.form, columns.types, self._form.representations)
        self._output = Output(self._place, form, self._progress, self._inputs.paths)
        todo = [unit for unit in self._inputs.units if not self._is_done(unit)]
        self._todo = iter(todo)
        if todo:
            self._progress.set_joined(joined=False)
        rows_left = sum(unit.rows for unit in todo)
        failed_left = sum(
            self._progress.done[unit.number].failed
            for unit in todo
            if unit.number in self._progress.done
        )
        self._report.start(self._inputs.rows - rows_left, self._progress.failed - failed_left)

    def _is_done(self, unit: Unit) -> bool:
        if not self._output.is_written(unit):
            return False
        return not (self._options.retry_failed and self._progress.done[unit.number].failed)

    def _accept(self, ready: StreamReady) -> None:
        """Check the model of a stream against that of the output."""
        options = self._options.embed
        if not self._representations:
            named = options.get("representations")
            self._representations = tuple(
                named or self._client.get_model(ready.model).representations[:1]
            )
        self._form = VectorForm(
            options.get("encoding", "float32"),
            options.get("dimensions") or ready.dimensions,
            self._representations,
        )
        self._served = {
            "model": ready.model,
            "fingerprint": ready.fingerprint,
            "dimensions": self._form.dimensions,
            "representations": list(self._form.representations),
        }
        self._progress.require(self._served)

    def _open_unit(self) -> tuple[list[tuple[Key, str]], int] | None:
        """Read the next unit. Runs in the thread of a stream."""
        unit = next(self._todo, None)
        if unit is None:
            return None
        rows = self._inputs.read(unit)
        part = self._parts[unit.number] = Part(unit, rows, self._form)
        sent: list[tuple[Key, str]] = []
        restored = self._output.restore(part)
        self._report.rows_done += len(restored)
        for row, text in enumerate(rows.texts):
            if row in restored:
                continue
            problem = text_problem(text)
            if problem or text is None:
                part.fail(row, problem)
                self._count_failed()
            else:
                sent.append((Key(unit.number, row), text))
        if part.is_complete:
            self._finish(part)
        return sent, unit.rows

    def _record(self, result: StreamResult) -> None:
        key: Key = result.id
        part = self._parts[key.unit]
        part.fill(key.row, result)
        if result.error is not None:
            self._count_failed()
        else:
            self._report.rows_done += 1
            self._report.tokens += result.token_count
            self._truncated += result.truncated
        if part.is_complete:
            self._finish(part)

    def _count_failed(self) -> None:
        self._report.rows_done += 1
        self._report.failed += 1
        limit = self._options.failed_max
        if limit is not None and self._report.failed == limit + 1:
            self._report.tell(f"more than {limit} rows failed: finishing the running units")
            self._feed.stop()

    def _finish(self, part: Part) -> None:
        del self._parts[part.unit.number]
        self._writer.submit(self._write, part)

    def _write(self, part: Part) -> None:
        """Write a part. Runs in the thread of the writer."""
        try:
            self._output.write(part, self._served["model"], self._served["fingerprint"])
        except BaseException as error:  # noqa: BLE001 -- raised in the thread of the run
            self._feed.fail(error)
        self._feed.close_unit(part.unit.rows)

    def _tell_trouble(self, error: EmbedGrpcError, delay_s: float) -> None:
        what = "no connection" if isinstance(error, ConnectionFailedError) else str(error)
        self._report.tell(
            f"{what}; again in {delay_s:.1f} s, for up to {self._options.patience_s:g} s"
            f" ({error.message})"
        )

    def _end(self, left: int, *, was_stopped: bool) -> int:
        tell: Callable[[str], None] = self._report.tell
        failed = self._progress.failed
        if self._truncated:
            tell(f"{self._truncated:,} texts were too long and were cut")
        if left:
            tell(
                f"{left:,} of {len(self._inputs.units):,} units are left:"
                " run the same command again to go on"
            )
            return INTERRUPTED if was_stopped else 1
        self._output.finish(self._inputs.units)
        if failed:
            tell(
                f'{failed:,} of {self._inputs.rows:,} rows failed: the column "error" says why,'
                " and --retry-failed tries them again"
            )
            return 1
        return 0


def _input_paths(options: RunOptions, place: Place) -> tuple[list[Path], str]:
    """Return the paths of the inputs, and the SHA-256 of standard input if that is the input."""
    if STDIN not in options.inputs:
        return [Path(one) for one in options.inputs], ""
    if len(options.inputs) > 1:
        raise UsageError('"-" for standard input goes with no other input')
    place.folder.mkdir(parents=True, exist_ok=True)
    spool = place.folder / f".{_SPOOL}.tmp"
    return [spool], spool_stdin(spool)
