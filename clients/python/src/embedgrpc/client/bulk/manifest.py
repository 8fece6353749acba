"""What a run works on and what is done, kept in the folder of the output.

`_manifest.json` holds the inputs, the options, the model and its fingerprint; `_done.jsonl` gets a
line for each part that is written. A part counts as done only with its line, and a line that a
crash cut short does not count. The names start with an underscore, so that readers of a folder of
Parquet files pass over them.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedgrpc.client.bulk.durable import append_line, write_whole
from embedgrpc.client.bulk.problems import UsageError

MANIFEST: Final = "_manifest.json"
DONE: Final = "_done.jsonl"
LOCK: Final = "_lock"
_VERSION: Final = 1
_SHOWN_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Done:
    """A part that is written.

    Attributes:
        part: Its number.
        rows: Its rows.
        failed: How many of them failed.
    """

    part: int
    rows: int
    failed: int


class Progress:
    """The state of an output folder. Only one process may have it open.

    Args:
        folder: The folder; made if it is missing.
        asked: What the output depends on, by name: inputs, options.

    Attributes:
        done: The parts that are written, by number.
        joined: Whether the parts were joined into one file and removed.

    Raises:
        UsageError: Another process writes there, the folder holds other files, or its output was
            made with other inputs or options.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = _lock(folder / LOCK)
        self._asked = json.loads(json.dumps({"version": _VERSION, **asked}))
        self.done: dict[int, Done] = {}
        self.joined = False
        self._kept: dict[str, Any] | None = None
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def require(self, served: Mapping[str, Any]) -> None:
        """Check the model against that of the output, or record it where the output begins.

        Args:
            served: The model, its fingerprint and the form of its vectors.

        Raises:
            UsageError: The output was made with another model.
        """
        if self._kept is not None:
            self._compare(self._kept, served)
            return
        self._kept = {**self._asked, **json.loads(json.dumps(served)), "joined": False}
        self._write()

    def add(self, done: Done) -> None:
        """Record a part whose files are in place."""
        line = json.dumps({"part": done.part, "rows": done.rows, "failed": done.failed})
        append_line(self._folder / DONE, line)
        self.done[done.part] = done

    def set_joined(self, *, joined: bool) -> None:
        """Record whether the parts were joined: then they are not needed any more."""
        if self._kept is not None and joined != self.joined:
            self._kept["joined"] = self.joined = joined
            self._write()

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    @property
    def failed(self) -> int:
        """The number of rows that failed."""
        return sum(done.failed for done in self.done.values())

    def _read(self) -> None:
        path = self._folder / MANIFEST
        if not path.exists():
            others = [
                one.name for one in self._folder.iterdir() if not one.name.startswith((".", "_"))
            ]
            if others:
                raise UsageError(
                    f"{self._folder} holds other files and no {MANIFEST}: name an empty folder"
                )
            (self._folder / DONE).unlink(missing_ok=True)
            return
        try:
            self._kept = json.loads(path.read_text("utf-8"))
        except ValueError:
            raise UsageError(f"{path} is damaged") from None
        self._compare(self._kept, self._asked)
        self.joined = bool(self._kept.get("joined"))
        self._read_done()

    def _read_done(self) -> None:
        path = self._folder / DONE
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            write_whole(path, lambda file: file.write(whole))
        for line in whole.splitlines():
            try:
                done = Done(**json.loads(line))
            except (ValueError, TypeError):
                raise UsageError(f"{path} is damaged") from None
            self.done[done.part] = done

    def _compare(self, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse to go on where something differs; name each difference."""
        differences = [
            f"{name} is {_shown(now[name])} and was {_shown(kept.get(name))}"
            for name in now
            if now[name] != kept.get(name)
        ]
        if differences:
            raise UsageError(
                f"the output in {self._folder} was made otherwise: {'; '.join(differences)}."
                " Name another output, or remove this one"
            )

    def _write(self) -> None:
        text = json.dumps(self._kept, indent=2)
        write_whole(self._folder / MANIFEST, lambda file: file.write(text.encode()))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    if len(text) > _SHOWN_CHARACTERS_MAX:
        return f"{text[:_SHOWN_CHARACTERS_MAX]}..."
    return text


def _lock(path: Path) -> Any:
    """Open a file that no other process has open like this."""
    file = path.open("ab")
    try:
        if os.name != "nt":
            import fcntl  # noqa: PLC0415 -- Windows has none

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UsageError(f"another process writes to {path.parent}") from None
    return file
