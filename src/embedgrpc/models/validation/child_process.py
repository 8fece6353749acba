"""Runs work on untrusted files in a process of its own, with limits on time and memory.

The child is this interpreter, started anew: a fork would take over the locks of threads that the
child does not have. It is told its work through its standard input, and answers with lines of JSON
on its standard output. It ends with the process that started it, whatever ends that one.
"""

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

# A message of a library may hold a whole file.
_LINE_BYTES_MAX = 1 << 20
_READ_BYTES = 1 << 16
# What a variable is called that the child must not know: it reads what strangers wrote.
_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")
# One thread for each core, and memory for each, is not needed to convert numbers or to try texts.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_BOOT = """
import sys
sys.path[:] = {path!r}
try:
    from {module} import main
except Exception as error:
    import json, traceback
    print(json.dumps({{"result": {{"error": repr(error), "stack": traceback.format_exc()}}}}))
else:
    main()
"""

Message = Mapping[str, Any]


class ChildError(Exception):
    """A child ended without an answer.

    Attributes:
        timed_out: Whether it was ended because it took too long.
        signal: The signal that ended it; 0 for none.
    """

    def __init__(self, message: str, *, timed_out: bool = False, signal_number: int = 0) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.signal = signal_number


class ChildGroup:
    """Holds the children that work for somebody, and ends them when they are not needed.

    Safe to be used by several threads at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def end(self) -> None:
        """Ends all children at once. Later ones are ended when they are taken."""
        with self._lock:
            self._ended = True
            for child in self._children:
                child.kill()

    def take(self, child: "subprocess.Popen[bytes]") -> None:
        """Holds a child until `release`."""
        with self._lock:
            self._children.add(child)
            if self._ended:
                child.kill()

    def release(self, child: "subprocess.Popen[bytes]") -> None:
        """Ends a child, if it has not ended, and lets go of it."""
        # Under the lock, so that nobody kills a number that belongs to another process by then.
        with self._lock:
            child.kill()
            child.wait()
            self._children.discard(child)


@dataclass(frozen=True, slots=True)
class Work:
    """What a child does.

    Attributes:
        module: Holds the function `main`, which takes the work with `receive`.
        job: What it is told, picklable.
        timeout_s: The longest that it may take; the time in `answer` does not count.
        answer: Answers a line that is no result, in the calling thread.
    """

    module: str
    job: Any
    timeout_s: float
    answer: Callable[[Message], Message | None]


def run_child(work: Work, children: ChildGroup) -> Message:
    """Runs a child. Blocks until it ends.

    Args:
        work: What it does.
        children: Ends it early.

    Returns:
        The line with the key `result`.

    Raises:
        ChildError: It ended without a result, or took too long.
        OSError: It cannot be started.
    """
    path = [entry for entry in sys.path if entry]
    child = subprocess.Popen(  # noqa: S603 - this interpreter, and our own module
        # -P: nothing is imported from the folder that the process happens to run in.
        [sys.executable, "-P", "-c", _BOOT.format(path=path, module=work.module)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        # A terminal's interrupt is for the process that started it.
        start_new_session=True,
    )
    children.take(child)
    try:
        return _Conversation(child, work).hold()
    finally:
        children.release(child)
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]  # both were asked for


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not any(secret in name.upper() for secret in _SECRETS)
    }
    return kept | _ENVIRONMENT


class _Conversation:
    """What a child and the process that started it say to each other."""

    def __init__(self, child: "subprocess.Popen[bytes]", work: Work) -> None:
        self.input = cast("IO[bytes]", child.stdin)
        self.output = cast("IO[bytes]", child.stdout)
        self.child = child
        self.work = work
        self.left_s = work.timeout_s
        self.buffer = b""

    def hold(self) -> Message:
        self.send(pickle.dumps((os.getpid(), self.work.job)))
        while True:
            message = self.receive()
            if "result" in message:
                return message
            answer = self.work.answer(message)
            if answer is not None:
                self.send(json.dumps(answer).encode() + b"\n")

    def send(self, content: bytes) -> None:
        try:
            self.input.write(content)
            self.input.flush()
        except OSError:
            raise self.ended() from None

    def receive(self) -> Message:
        while b"\n" not in self.buffer:
            content = self.read()
            if not content or len(self.buffer) > _LINE_BYTES_MAX:
                raise self.ended()
            self.buffer += content
        line, _, self.buffer = self.buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            raise self.ended() from None
        return message if isinstance(message, dict) else {}

    def read(self) -> bytes:
        began = time.monotonic()
        # Unlike select.select it takes any number of open files.
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            ready = selector.select(max(self.left_s, 0))
        self.left_s -= time.monotonic() - began
        if not ready:
            raise ChildError(
                f"took longer than {self.work.timeout_s:g} s, and was ended", timed_out=True
            )
        return os.read(self.output.fileno(), _READ_BYTES)

    def ended(self) -> ChildError:
        """What to say of a child that does not answer any more."""
        try:
            code = self.child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return ChildError("gave no answer that could be read")
        if code >= 0:
            return ChildError(f"ended without an answer, with exit code {code}")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return ChildError(f"was ended by signal {name}", signal_number=-code)


class Channel:
    """The child's end of the conversation."""

    def __init__(self) -> None:
        # Libraries that print must not be taken for answers.
        self._output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._input = sys.stdin.buffer

    def receive(self) -> Any:
        """Takes the work, and ties the life of this process to that of the one that gave it."""
        parent, job = pickle.load(self._input)  # noqa: S301 - from the process that started this one
        _die_with(parent)
        return job

    def send(self, message: Message) -> None:
        """Says something that needs no answer."""
        self._output.write(json.dumps(message).encode() + b"\n")
        self._output.flush()

    def ask(self, message: Message) -> Message:
        """Says something, and waits for the answer."""
        self.send(message)
        answer = json.loads(self._input.readline() or b"null")
        return answer if isinstance(answer, dict) else {"error": "nobody answered"}


def limit_process(memory_bytes: int) -> None:
    """Limits this process.

    Where the system knows no such limit there is none: these are those of Linux.

    Args:
        memory_bytes: The most memory that it may take for data; what it maps from files does not
            count.
    """
    # Of all processes in a container this one goes first when memory runs out.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - no path
        file.write("1000")
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return
    for kind, limit in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_CORE, 0)):
        _, most = resource.getrlimit(kind)
        least = limit if most == resource.RLIM_INFINITY else min(limit, most)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (least, least))


_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # noqa: PLC0415 - for this system alone

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent != os.getppid():
        os._exit(1)  # it died before this was set
