"""Runs a function on untrusted files in a child process, with limits on time and memory.

The child is a new interpreter: a fork would copy locks held by threads that the child does not
have. It reads its job from standard input and writes lines of JSON to standard output. It ends
when its parent ends, however that happens.
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

# A library's error message may contain a whole file.
_LINE_BYTES_MAX = 1 << 20
_READ_BYTES = 1 << 16
# The child reads untrusted files, so it gets no variable whose name contains one of these.
_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")
# Converting numbers and tokenizing a few texts needs no thread, with its memory, for each core.
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
    """A child ended without a result.

    Attributes:
        timed_out: Whether it was killed because it took too long.
        signal: The signal that ended it; 0 for none.
    """

    def __init__(self, message: str, *, timed_out: bool = False, signal_number: int = 0) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.signal = signal_number


class ChildGroup:
    """Child processes that can be killed together. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def end(self) -> None:
        """Kill all children, and each one that is added later."""
        with self._lock:
            self._ended = True
            for child in self._children:
                child.kill()

    def add(self, child: "subprocess.Popen[bytes]") -> None:
        """Add a child that runs until `remove`."""
        with self._lock:
            self._children.add(child)
            if self._ended:
                child.kill()

    def remove(self, child: "subprocess.Popen[bytes]") -> None:
        """Kill a child if it still runs, and remove it."""
        # Under the lock: after the wait, another process may have the same id.
        with self._lock:
            child.kill()
            child.wait()
            self._children.discard(child)


@dataclass(frozen=True, slots=True)
class ChildCall:
    """A call of a function in a child.

    Attributes:
        module: Contains the function `main`, which gets the job from `Parent.receive`.
        job: Picklable.
        timeout_s: The time in `answer` does not count.
        answer: Answers a message that is not the result, in the calling thread.
    """

    module: str
    job: Any
    timeout_s: float
    answer: Callable[[Message], Message | None]


def run_child(call: ChildCall, children: ChildGroup) -> Message:
    """Run a call in a child. Blocks until the child ends.

    Returns:
        The message with the key `result`.

    Raises:
        ChildError: The child ended without a result, or took too long.
        OSError: The child cannot be started.
    """
    path = [entry for entry in sys.path if entry]
    child = subprocess.Popen(  # noqa: S603 - this interpreter, and our own module
        # -P: import nothing from the current folder.
        [sys.executable, "-P", "-c", _BOOT.format(path=path, module=call.module)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        # Ctrl-C on a terminal is for the parent.
        start_new_session=True,
    )
    children.add(child)
    try:
        return _Conversation(child, call).hold()
    finally:
        children.remove(child)
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
    """The messages between a child and its parent."""

    def __init__(self, child: "subprocess.Popen[bytes]", call: ChildCall) -> None:
        self.input = cast("IO[bytes]", child.stdin)
        self.output = cast("IO[bytes]", child.stdout)
        self.child = child
        self.call = call
        self.left_s = call.timeout_s
        self.buffer = b""

    def hold(self) -> Message:
        self.send(pickle.dumps((os.getpid(), self.call.job)))
        while True:
            message = self.receive()
            if "result" in message:
                return message
            answer = self.call.answer(message)
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
        # select.select fails for descriptors above 1023.
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            ready = selector.select(max(self.left_s, 0))
        self.left_s -= time.monotonic() - began
        if not ready:
            raise ChildError(
                f"took longer than {self.call.timeout_s:g} s and was killed", timed_out=True
            )
        return os.read(self.output.fileno(), _READ_BYTES)

    def ended(self) -> ChildError:
        """Return the error for a child that sends no more messages."""
        try:
            code = self.child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return ChildError("sent an unreadable message")
        if code >= 0:
            return ChildError(f"ended without a result, with exit code {code}")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return ChildError(f"was ended by signal {name}", signal_number=-code)


class Parent:
    """The parent process, as the child sees it."""

    def __init__(self) -> None:
        # The output of libraries goes elsewhere, so that it is not read as a message.
        self._output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._input = sys.stdin.buffer

    def receive(self) -> Any:
        """Return the job. From now on this process ends when its parent ends."""
        parent, job = pickle.load(self._input)  # noqa: S301 - from the parent
        _die_with(parent)
        return job

    def send(self, message: Message) -> None:
        """Send a message that needs no answer."""
        self._output.write(json.dumps(message).encode() + b"\n")
        self._output.flush()

    def ask(self, message: Message) -> Message:
        """Send a message, and wait for the answer."""
        self.send(message)
        answer = json.loads(self._input.readline() or b"null")
        return answer if isinstance(answer, dict) else {"error": "the parent did not answer"}


def limit_process(memory_bytes: int) -> None:
    """Limit the memory of this process, on systems that have such limits (Linux).

    Args:
        memory_bytes: Data only; mapped files do not count.
    """
    # If a container runs out of memory, the kernel kills this process first.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - no path
        file.write("1000")
    try:
        import resource  # noqa: PLC0415 - missing on some systems
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
    import ctypes  # noqa: PLC0415 - only needed on Linux

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent != os.getppid():
        os._exit(1)  # the parent ended before the call above
