"""Where the output of a run goes: a folder of parts, or one file that they are joined into."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from embedgrpc.client.bulk.batch_requests import BATCH_FORMAT
from embedgrpc.client.bulk.durable import with_ending
from embedgrpc.client.bulk.manifest import Done, Progress
from embedgrpc.client.bulk.part import Part
from embedgrpc.client.bulk.part_files import MODEL, OUTPUT_SUFFIXES, SOURCE, PartFormat
from embedgrpc.client.bulk.problems import UsageError
from embedgrpc.client.bulk.units import Unit

_PART_DIGITS: Final = 5
PARTS_SUFFIX: Final = ".parts"


class Place:
    """The paths of an output.

    Args:
        output: A folder, or a file with the suffix of a format. The parts of a file lie beside
            it, in a folder with its name and ".parts", until all are done.
        form: One of `OUTPUT_FORMATS`; "" to go by the suffix.

    Attributes:
        folder: The folder of the parts.
        file: The file; None for a folder.
        form: The format.

    Raises:
        UsageError: The suffix of the file tells another format.
    """

    def __init__(self, output: Path, form: str) -> None:
        suffix = output.suffix.lower()
        self.file: Path | None = None
        self.folder = output
        self.form = form or OUTPUT_SUFFIXES.get(suffix, "parquet")
        if suffix not in OUTPUT_SUFFIXES or output.is_dir():
            if output.is_file():
                raise UsageError(f"{output} is a file whose suffix tells no format of an output")
            return
        is_batch = form == BATCH_FORMAT and suffix == ".jsonl"
        if form and form != OUTPUT_SUFFIXES[suffix] and not is_batch:
            raise UsageError(f"{output} has the suffix of {OUTPUT_SUFFIXES[suffix]}, not of {form}")
        self.file = output
        self.folder = output.with_name(output.name + PARTS_SUFFIX)

    def stem(self, number: int) -> Path:
        """Return the path of a part, without the suffix."""
        return self.folder / f"part-{number:0{_PART_DIGITS}}"


class Output:
    """The parts of an output, written one by one.

    Args:
        place: Where they go.
        form: The format.
        progress: What is done.
        sources: The paths of the inputs, for what a part tells of itself.
    """

    def __init__(
        self, place: Place, form: PartFormat, progress: Progress, sources: Sequence[Path]
    ) -> None:
        self._place = place
        self._form = form
        self._progress = progress
        self._sources = sources

    def write(self, part: Part, model: str, fingerprint: str) -> None:
        """Write a part, and record that it is done."""
        unit = part.unit
        span = unit.span
        source = {
            "path": str(self._sources[unit.input_index]),
            "group": span.group,
            "start": span.start,
            "end": span.end,
        }
        metadata = {
            MODEL: model,
            "embedgrpc.fingerprint": fingerprint,
            SOURCE: json.dumps(source),
        }
        self._form.write(part, self._place.stem(unit.number), metadata)
        self._progress.add(Done(unit.number, unit.rows, part.failed))

    def is_written(self, unit: Unit) -> bool:
        """Return whether the files of a unit are done and still there."""
        done = self._progress.done.get(unit.number)
        if done is None or done.rows != unit.rows:
            return False
        stem = self._place.stem(unit.number)
        if self._progress.joined and self._place.file is not None and self._place.file.exists():
            return True
        return all(with_ending(stem, suffix).exists() for suffix in self._form.suffixes)

    def restore(self, part: Part) -> set[int]:
        """Fill a part with the embeddings that it had; return the places of those rows."""
        if not self.is_written(part.unit):
            return set()
        places: set[int] = set()
        for place, result in self._form.stored(self._place.stem(part.unit.number), part.form):
            part.fill(place, result)
            places.add(place)
        return places

    def finish(self, units: Sequence[Unit]) -> None:
        """Join the parts, where the output is one file.

        The parts go once no row has failed: those that failed may be tried again.
        """
        if self._place.file is None or self._progress.joined:
            return
        stems = [self._place.stem(unit.number) for unit in units]
        self._form.join(stems, self._place.file.with_suffix(""))
        if self._progress.failed:
            return
        self._progress.set_joined(joined=True)
        for stem in stems:
            for suffix in self._form.suffixes:
                with_ending(stem, suffix).unlink()
