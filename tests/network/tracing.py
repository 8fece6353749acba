"""Traces the network calls of a process, in C as well as in Python, with `strace`."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CALLS = "socket,connect,sendto,sendmsg,sendmmsg"
# Calls within this machine: sockets of other processes, and the kernel's own tables.
_LOCAL = re.compile(
    r"AF_UNIX|AF_NETLINK"
    r'|sin_addr=inet_addr\("(127\.|0\.0\.0\.0")'
    r'|inet_pton\(AF_INET6, "(::1|::ffff:127\.[\d.]+|::)"'
)
_ADDRESS = re.compile(r"sa_family=AF_\w+|sin6?_port=")


class TracerMissingError(Exception):
    """strace is missing; the message says how to install it."""


@dataclass(frozen=True, slots=True)
class Tracer:
    """Runs commands under `strace`.

    Attributes:
        record: The file with the calls of a process and of all its children.
    """

    record: Path

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one and records its calls.

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
        """Return the id of the traced process: signals to the tracer do not reach it."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (child,) = children.read_text().split()
        return int(child)

    def calls(self) -> list[str]:
        """Return every recorded call."""
        return self.record.read_text("utf-8", "replace").splitlines()

    def calls_elsewhere(self) -> list[str]:
        """Return the calls with an address of another machine, such as a name server."""
        return [call for call in self.calls() if _ADDRESS.search(call) and not _LOCAL.search(call)]


def variables(home: Path) -> dict[str, str]:
    """Return the environment of a user with an empty home folder and no settings."""
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(home)}
