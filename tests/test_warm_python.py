"""Programs in forks see what they would see in a new interpreter."""

import signal
from pathlib import Path

from tests.warm_python import Done, run_warm

SHOW = """
import os, sys
print(sys.argv[1:], dict(os.environ), os.getcwd(), sys.stdin.read(), __name__)
sys.stderr.write("a problem")
raise SystemExit(3)
"""
LEAVE = """
import os, sys, json
print(hasattr(json, "left"), "LEFT" in os.environ, "huggingface_hub" in sys.modules)
json.left = os.environ["LEFT"] = "x"
"""


def test_a_program_has_what_it_was_given(tmp_path: Path) -> None:
    """Arguments, variables, a folder and streams are its own, and so is the exit code."""
    done = run_warm(SHOW, "a b", tmp_path, environment={"A": "1"}, folder=tmp_path, stdin=b"input")
    shown = f"{['a b', str(tmp_path)]} {{'A': '1'}} {tmp_path} input __main__\n"
    assert done == Done(3, shown, "a problem")


def test_programs_leave_nothing_to_each_other() -> None:
    """Each begins as the first did."""
    for _ in range(2):
        assert run_warm(LEAVE, environment={}) == Done(0, "False False False\n", "")


def test_a_program_may_be_killed() -> None:
    """Its end is told as `subprocess` would, and the next program runs."""
    killed = run_warm("import os; os.kill(os.getpid(), 9)", environment={})
    assert killed == Done(-signal.SIGKILL, "", "")
    assert run_warm("print(1)", environment={}).out == "1\n"
