import pytest

from tests.fuzz.catalog import TARGETS, find
from tests.fuzz.faulty import WAYS
from tests.fuzz.run import fuzz
from tests.fuzz.target import Finding
from tests.fuzz.worker import make_input, replay

pytestmark = pytest.mark.long


_SEED = 1
# Its first inputs fail in every way, and each slow way occurs once.
_FAULTY_SEED = 1334
_FAULTY_RUNS = 10


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_target(name: str) -> None:
    """Mutated inputs are accepted or refused, quickly and with little memory."""
    target = find(name)
    report = fuzz(target, runs=target.test_runs, seconds=100, seed=_SEED)
    assert report.findings == ()
    # On a very busy machine, fewer are enough.
    assert report.executions == target.test_runs or report.seconds > 99
    # Some inputs are accepted and some refused.
    assert 0 < report.refused < report.executions


def test_every_way_to_fail_is_found() -> None:
    """Findings are exceptions, crashes, hangs and too much memory, also if a refusal hides it."""
    found: dict[str, Finding] = {}
    target = find("faulty")

    def note(finding: Finding, content: bytes) -> None:
        assert make_input(target, _FAULTY_SEED, finding.index) == content
        found[WAYS[content[0]].__name__] = finding

    report = fuzz(target, runs=_FAULTY_RUNS, seconds=100, seed=_FAULTY_SEED, on_finding=note)
    assert {name: finding.fault for name, finding in found.items()} == {
        "_raise": "ValueError: no refusal",
        "_exit": "SystemExit: 3",
        "_crash": "the process died of SIGSEGV",
        "_compute": "it computed for more than 1 s",
        "_allocate": "MemoryError: ",
        "_hide_allocation": "MemoryError: ",
        "_refuse_in_lines": "AssertionError: the message has several lines: 'it is\\ndamaged'",
    }
    assert report.executions == _FAULTY_RUNS
    assert len(report.findings) == 7


def test_a_finding_can_be_run_again() -> None:
    """The input of a finding raises the same error again."""
    with pytest.raises(ValueError, match="no refusal"):
        replay(find("faulty"), bytes([1]))


@pytest.mark.parametrize("name", ["torch", "safetensors", "configs", "texts"])
def test_a_seed_makes_the_same_inputs(name: str) -> None:
    """Seed and number identify an input."""
    target = find(name)
    inputs = [make_input(target, _SEED, index) for index in range(200)]
    assert inputs == [make_input(target, _SEED, index) for index in range(200)]
    assert len(set(inputs)) > 150
    assert inputs != [make_input(target, _SEED + 1, index) for index in range(200)]
