"""Traces what a process asks of the network, in C as well as in Python, by `strace`."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CALLS = "socket,connect,sendto,sendmsg,sendmmsg"
# What reaches this machine alone: other processes' sockets, and the kernel's own tables.
_LOCAL = re.compile(
    r"AF_UNIX|AF_NETLINK"
    r'|sin_addr=inet_addr\("(127\.|0\.0\.0\.0")'
    r'|inet_pton\(AF_INET6, "(::1|::ffff:127\.[\d.]+|::)"'
)
_ADDRESS = re.compile(r"sa_family=AF_\w+|sin6?_port=")


class TracerMissingError(Exception):
    """There is no strace here; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Tracer:
    """Runs commands under `strace`.

    Attributes:
        record: Where the calls of a process and of all its children are written.
    """

    record: Path

    def command(self, command: Sequence[str]) -> list[str]:
        """Makes the command that runs another one and records its calls.

        Raises:
            TracerMissingError: There is no strace.
        """
        strace = shutil.which("strace")
        if strace is None:
            raise TracerMissingError("strace is missing: install it with `apt-get install strace`")
        trace = ["--follow-forks", "--seccomp-bpf", "--string-limit=64"]
        return [strace, *trace, f"--trace={_CALLS}", f"--output={self.record}", "--", *command]

    @staticmethod
    def traced(process: "subprocess.Popen[Any]") -> int:
        """Finds the process that a tracer runs: signals to the tracer do not reach it."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (child,) = children.read_text().split()
        return int(child)

    def calls(self) -> list[str]:
        """Every call that was recorded."""
        return self.record.read_text("utf-8", "replace").splitlines()

    def calls_elsewhere(self) -> list[str]:
        """The calls that name an address of another machine, such as that of a name server."""
        return [call for call in self.calls() if _ADDRESS.search(call) and not _LOCAL.search(call)]


def variables(home: Path) -> dict[str, str]:
    """The environment of a user who has set nothing, and whose folder is empty."""
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(home)}
