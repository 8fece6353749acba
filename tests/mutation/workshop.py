"""Where mutants are tried out: a copy of the repository, whose code comes before the installed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from tests.mutation.mutants import Mutant
from tests.mutation.suites import ROOT

_COPIED = ("src", "clients", "tests", "benchmarks", "protos", "docker")
_COPIED_FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "buf.yaml")
# A mutant that makes tests slower than this, times what they take without it, hangs.
_PATIENCE = 3
_PATIENCE_S = 30.0
# Most mutants that hang do so in one test.
_TEST_S = 60


class Fate(Enum):
    """What became of a mutant."""

    KILLED = "killed"
    # The tests did not end, which a person would notice, too.
    HUNG = "hung"
    SURVIVED = "SURVIVED"
    # All its tests fail where nothing is wrong.
    UNTRIED = "not tried"


class Workshop:
    """A copy of the repository.

    Args:
        folder: An empty folder for it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "node_modules", ".venv")
        for name in _COPIED:
            if (ROOT / name).exists():
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in _COPIED_FILES:
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, folder / name)
        # How long test files take where nothing is wrong, in seconds; None where they fail.
        self._usual_s: dict[Path, float | None] = {}

    def try_out(self, mutant: Mutant, tests: Sequence[Path]) -> Fate:
        """Run those tests on a mutant that pass without it, until one fails."""
        usual_s = {test: self._usual(test) for test in tests}
        tests = [test for test in tests if usual_s[test] is not None]
        if not tests:
            return Fate.UNTRIED
        limit_s = _PATIENCE * sum(one or 0 for one in usual_s.values()) + _PATIENCE_S
        module = self._folder / mutant.module.relative_to(ROOT)
        whole = module.read_text("utf-8")
        module.write_text(mutant.code, "utf-8")
        try:
            return self._run(tests, limit_s=limit_s)
        finally:
            module.write_text(whole, "utf-8")

    def _usual(self, test: Path) -> float | None:
        """Return how long a test file takes where nothing is wrong; None where it fails."""
        if test not in self._usual_s:
            began = time.monotonic()
            passed = self._run([test], limit_s=None) is Fate.SURVIVED
            self._usual_s[test] = time.monotonic() - began if passed else None
            if not passed:
                print(f"left out, for it fails without any mutant: {test.relative_to(ROOT)}")
        return self._usual_s[test]

    def _run(self, tests: Sequence[Path], *, limit_s: float | None) -> Fate:
        sources = [self._folder / "src", self._folder / "clients" / "python" / "src"]
        try:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
                    *("--timeout", str(_TEST_S), "--hypothesis-seed", "0"),
                    *(str(one.relative_to(ROOT)) for one in tests),
                ],
                cwd=self._folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(str, sources)),
                    # Else a mutant of the same size and second would pass for what it was made of.
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Fate.HUNG
        if done.returncode == 0:
            return Fate.SURVIVED
        # A module that cannot be imported, or a process that is killed, is noticed as well.
        return Fate.KILLED
