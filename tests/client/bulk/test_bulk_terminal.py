import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

from tests.client.bulk.conftest import ROWS, table, write
from tests.client.servicer import Script

COMMAND = str(Path(sys.executable).parent / "embedgrpc-client")
NEW_FRAME = "\r\x1b[K"
COLUMNS = 100


class Terminal:
    """The command on a terminal, and what it wrote there."""

    def __init__(self, *arguments: object) -> None:
        self._controller, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, COLUMNS))
        self.process = subprocess.Popen(
            [COMMAND, "bulk", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=terminal,
        )
        os.close(terminal)
        self.shown = ""

    def read_until(self, text: str) -> None:
        """Read until a text was written, or the command has ended."""
        while text not in self.shown:
            try:
                piece = os.read(self._controller, 4096)
            except OSError:  # the command has ended
                return
            self.shown += piece.decode()

    def frames(self, status: int) -> list[str]:
        """Read to the end; return the frames without those that were overwritten."""
        self.read_until("\0")
        os.close(self._controller)
        assert self.process.wait(60) == status, self.shown
        lines = self.shown.replace("\r\n", "\n").split("\n")
        return [line.rpartition(NEW_FRAME)[2] for line in lines if line]


def test_the_bar_fills(script: Script, target: str, tmp_path: Path) -> None:
    """The last frame says that all rows are done, how fast, and how many failed."""
    script.max_in_flight_inputs = 64
    source = write(table(), tmp_path / "in.parquet")
    terminal = Terminal(source, "--output", tmp_path / "out", "--target", target)
    bar, end = terminal.frames(1)
    assert bar.startswith("[####")
    assert "...]" not in bar
    assert f"100% {ROWS}/{ROWS} rows, " in bar
    assert "rows/s, " in bar
    assert bar.endswith("tokens/s, 1 failed")
    assert len(bar) < COLUMNS
    assert "--retry-failed tries them again" in end


def test_ctrl_c_and_what_follows(script: Script, target: str, tmp_path: Path) -> None:
    """The terminal says what the key did and how to go on; the next bar starts where it was."""
    script.max_in_flight_inputs = 32
    script.hold_answers = threading.Event()
    source = write(table(failing=()), tmp_path / "in.parquet")
    flags = ("--unit-rows", 16, "--batch-size", 16, "--target", target)
    first = Terminal(source, "--output", tmp_path / "out", *flags)
    assert script.window_full.wait(60)
    first.read_until("rows/s")
    first.process.send_signal(signal.SIGINT)
    first.read_until("ends at once")
    script.hold_answers.set()
    *_, note, bar, end = first.frames(130)
    assert note == "embedgrpc-client: finishing the running units; Ctrl-C again ends at once"
    assert bar.startswith("[###")
    assert "...] " in bar
    assert end.endswith("run the same command again to go on")
    script.hold_answers = threading.Event()
    second = Terminal(source, "--output", tmp_path / "out", *flags)
    assert script.window_full.wait(60)
    second.read_until("rows/s")
    script.hold_answers.set()
    (bar,) = second.frames(0)
    assert f"100% {ROWS}/{ROWS} rows" in bar
    assert f"  0% 0/{ROWS}" not in second.shown


def test_a_failure_is_the_last_line(tmp_path: Path) -> None:
    """Without a server there is no bar, only the reason."""
    source = write(table(), tmp_path / "in.parquet")
    flags = ("--output", tmp_path / "out", "--target", "127.0.0.1:1", "--patience", 0)
    (end,) = Terminal(source, *flags).frames(1)
    assert "the connection to 127.0.0.1:1 failed; is a server running there?" in end
