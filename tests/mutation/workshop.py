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
_TEST_S = 30


class Fate(Enum):
    """What became of a mutant."""

    KILLED = "killed"
    # The tests did not end, which a person would notice, too.
    HUNG = "hung"
    SURVIVED = "SURVIVED"
    # Its tests fail where nothing is wrong.
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
        # How long tests take where nothing is wrong, in seconds; None where they fail.
        self._usual_s: dict[frozenset[Path], float | None] = {}

    def try_out(self, mutant: Mutant, tests: Sequence[Path]) -> Fate:
        """Run tests on a mutant until one fails."""
        suite = frozenset(tests)
        if suite not in self._usual_s:
            began = time.monotonic()
            # Twice, for a busy machine fails a test now and then.
            passed = any(self._run(tests, limit_s=None) is Fate.SURVIVED for _ in range(2))
            self._usual_s[suite] = time.monotonic() - began if passed else None
        usual_s = self._usual_s[suite]
        if usual_s is None:
            return Fate.UNTRIED
        module = self._folder / mutant.module.relative_to(ROOT)
        whole = module.read_text("utf-8")
        module.write_text(mutant.code, "utf-8")
        try:
            return self._run(tests, limit_s=_PATIENCE * usual_s + _PATIENCE_S)
        finally:
            module.write_text(whole, "utf-8")

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
        if limit_s is None:
            sys.stdout.write(done.stdout.decode(errors="replace")[-3000:])
        # A module that cannot be imported, or a process that is killed, is noticed as well.
        return Fate.KILLED
