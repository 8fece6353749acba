"""What children do in tests: they answer, and fail in all ways there are."""

import os
import signal
import sys
from collections.abc import Callable

from embedgrpc.models.validation.child_process import Channel, limit_process

_LIMIT_BYTES = 256 << 20


def _answer(channel: Channel) -> None:
    channel.send({"result": channel.ask({"question": 1})})


def _print(channel: Channel) -> None:
    sys.stdout.write('{"result": "of somebody else"}\n')
    sys.stdout.flush()
    os.write(1, b'{"result": "of a library"}\n')
    channel.send({"result": "mine"})


def _tell_environment(channel: Channel) -> None:
    channel.send({"result": dict(os.environ)})


def _tell_path(channel: Channel) -> None:
    channel.send({"result": sys.path})


def _hang(channel: Channel) -> None:
    channel.send({"pid": os.getpid()})
    while True:
        signal.pause()


def _wait_for_answer(channel: Channel) -> None:
    channel.ask({"pid": os.getpid()})
    channel.send({"result": None})


def _crash(_: Channel) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _leave(_: Channel) -> None:
    os._exit(3)


def _babble(channel: Channel) -> None:
    channel.send({"log": "x" * (2 << 20)})


def _talk_nonsense(channel: Channel) -> None:
    channel._output.write(b"no JSON\n")
    channel._output.flush()


def _eat(channel: Channel) -> None:
    limit_process(_LIMIT_BYTES)
    try:
        kept = [bytearray(16 << 20) for _ in range(1000)]
    except MemoryError:
        channel.send({"result": "out of memory"})
    else:
        channel.send({"result": len(kept)})


WORKS: dict[str, Callable[[Channel], None]] = {
    work.__name__.removeprefix("_"): work
    for work in (
        _answer, _print, _tell_environment, _tell_path, _hang, _wait_for_answer, _crash, _leave,
        _babble, _talk_nonsense, _eat,
    )
}  # fmt: skip


def main() -> None:
    """Does what it is told by name."""
    channel = Channel()
    WORKS[channel.receive()](channel)
