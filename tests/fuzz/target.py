"""Fuzz targets, findings and reports."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

MIB = 1024 * 1024

# Runs one input. It returns after a success or a documented refusal (see `check_refusal`); an
# exception is a finding.
Execute = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Code that reads untrusted input.

    Attributes:
        name: The name on the command line.
        what: The mutated input and the code that reads it, in one line.
        mutate: Returns an input; equal random states give equal inputs.
        open: Prepares a scratch folder, warms up, and yields the function that runs one input.
        test_runs: The number of inputs in the test suite; they take about 5 seconds.
        memory_bytes: The limit of address space for one input, beyond its own size; 0 if the code
            runs in another process.
        cpu_s: The limit of CPU time for one input.
        wall_s: The limit of time for one input on a busy machine.
        validated: Whether a server runs this code in a child process first, with limits on time
            and memory. Inputs that end the process are then counted, but are no findings.
    """

    name: str
    what: str
    mutate: Callable[[Random], bytes]
    open: Callable[[Path], AbstractContextManager[Execute]]
    test_runs: int
    memory_bytes: int = 64 * MIB
    cpu_s: float = 1.0
    wall_s: float = 60.0
    validated: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that neither succeeds nor gets a documented refusal.

    Attributes:
        index: The number of the input; seed and number make it again.
        fault: The problem, in one line.
        place: A line of code or the name of a signal; equal findings have equal places.
        details: A traceback; empty if the process died.
    """

    index: int
    fault: str
    place: str
    details: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run.

    Attributes:
        executions: The number of inputs.
        refused: The number of refused inputs.
        deaths: The number of inputs that ended a process.
        findings: One per place.
        seconds: The duration.
        grown_bytes: The growth of the last process's resident memory after its first thousand
            inputs.
    """

    executions: int
    refused: int
    deaths: int
    findings: tuple[Finding, ...]
    seconds: float
    grown_bytes: int


class Refusals:
    """Counts refusals, to detect a run that refuses everything or nothing."""

    count = 0


def check_refusal(error: Exception, *, names: str = "") -> None:
    """Check that the message of a refusal is useful.

    Args:
        error: An error of the documented class.
        names: A text that the message must contain, such as the path of the file.

    Raises:
        MemoryError: The refusal hides that memory ran out.
        AssertionError: The message is empty, has several lines or does not name the file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise cause
        cause = cause.__cause__ or cause.__context__
    message = str(error)
    assert message, "the message is empty"
    assert "\n" not in message, f"the message has several lines: {message!r}"
    assert names in message, f"the message does not name {names}: {message!r}"
    Refusals.count += 1
