"""What is fuzzed, and what may come of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

MIB = 1024 * 1024

# Runs one input. What it raises is a finding: it returns after a success and after a refusal
# that is documented, see `check_refusal`.
Execute = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Code that reads what somebody else wrote.

    Attributes:
        name: Its name on the command line.
        what: One line that says what is mutated, and what it is given to.
        mutate: Makes an input; the same one for the same state of the random numbers.
        open: Prepares to run inputs in a scratch folder, warms up what is loaded late, and gives
            what runs one.
        test_runs: How many inputs the test suite runs: about 5 seconds' worth.
        memory_bytes: How much address space one input may take beyond its own size; 0 where
            the code under test is not in this process.
        cpu_s: How long one input may compute.
        wall_s: How long one input may take on a busy machine.
        validated: Whether a server runs this code in a process of its own first, with limits on
            time and memory, so that an input that ends the process is refused there. Such
            inputs are counted, and no finding.
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
    """An input that had another outcome than success or a documented refusal.

    Attributes:
        index: Its number, from which the seed makes it again.
        fault: What happened, in a line.
        place: Where, so that equal findings can be told: a line of code or the name of a signal.
        details: A traceback; empty where the process died.
    """

    index: int
    fault: str
    place: str
    details: str


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run.

    Attributes:
        executions: How many inputs were run.
        refused: How many of them were refused.
        deaths: How many of them ended the process, where the target is validated.
        findings: One for each place.
        seconds: How long it took.
        grown_bytes: How much more memory the last process had resident at its end than after
            its first thousand inputs.
    """

    executions: int
    refused: int
    deaths: int
    findings: tuple[Finding, ...]
    seconds: float
    grown_bytes: int


class Refusals:
    """Counts refusals, so that a run in which everything is refused, or nothing, is seen."""

    count = 0


def check_refusal(error: Exception, *, names: str = "") -> None:
    """Checks that a refusal is one that a person can use.

    Args:
        error: Of the documented class.
        names: What its message must hold, such as the path of the file.

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
