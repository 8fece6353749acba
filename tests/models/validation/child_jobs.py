"""The jobs of children in tests: some answer, others fail in every way there is."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from embedgrpc.models.validation.child_process import Parent, limit_process

_LIMIT_BYTES = 256 << 20


def _ask(parent: Parent) -> None:
    parent.send({"result": parent.ask({"question": 1})})


def _print_messages(parent: Parent) -> None:
    sys.stdout.write('{"result": "of a library"}\n')
    sys.stdout.flush()
    os.write(1, b'{"result": "of a library"}\n')
    parent.send({"result": "mine"})


def _send_environment(parent: Parent) -> None:
    parent.send({"result": dict(os.environ)})


def _send_path(parent: Parent) -> None:
    parent.send({"result": sys.path})


def _hang(parent: Parent) -> None:
    parent.send({"pid": os.getpid()})
    while True:
        signal.pause()


def _wait_for_answer(parent: Parent) -> None:
    parent.ask({"pid": os.getpid()})
    parent.send({"result": None})


def _crash(_: Parent) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _exit(_: Parent) -> None:
    os._exit(3)


def _send_too_much(parent: Parent) -> None:
    parent.send({"log": "x" * (2 << 20)})


def _send_no_json(parent: Parent) -> None:
    parent._output.write(b"no JSON\n")
    parent._output.flush()


def _fill_memory(parent: Parent) -> None:
    limit_process(_LIMIT_BYTES)
    try:
        kept = [bytearray(16 << 20) for _ in range(1000)]
    except MemoryError:
        parent.send({"result": "out of memory"})
    else:
        parent.send({"result": len(kept)})


def _send_oom_score(parent: Parent) -> None:
    limit_process(1 << 30)
    parent.send({"result": Path("/proc/self/oom_score_adj").read_text().strip()})


JOBS: dict[str, Callable[[Parent], None]] = {
    job.__name__.removeprefix("_"): job
    for job in (
        _ask, _print_messages, _send_environment, _send_path, _hang, _wait_for_answer, _crash,
        _exit, _send_too_much, _send_no_json, _fill_memory,
        _send_oom_score,
    )
}  # fmt: skip


def main() -> None:
    """Run the job of a name."""
    parent = Parent()
    JOBS[parent.receive()](parent)
