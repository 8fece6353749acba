"""The examples in other languages, and what builds them.

uv run python -m tests.docs.examples     downloads their libraries and builds them
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
# Resolved, as Cargo builds anew what it finds under another path.
CACHE = (ROOT / ".cache" / "examples").resolve()
_MAVEN = ("mvn", "--batch-mode", "--quiet", f"-Dmaven.repo.local={CACHE / 'maven'}")


@dataclass(frozen=True, slots=True)
class Example:
    """An example, and the commands that its README tells.

    Attributes:
        name: The name of its folder.
        tools: The programs it needs.
        lock: The file that names its libraries; "" if it needs none.
        install: Downloads the libraries.
        build: Builds without a network.
        run: Runs; `TARGET` stands for the address of the server.
    """

    name: str
    tools: tuple[str, ...] = ()
    lock: str = ""
    install: tuple[str, ...] = ()
    build: tuple[tuple[str, ...], ...] = ()
    run: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of its sources."""
        return EXAMPLES / self.name

    @property
    def missing_tools(self) -> list[str]:
        """The programs that are not on the PATH."""
        return [tool for tool in self.tools if shutil.which(tool) is None]

    @property
    def is_installed(self) -> bool:
        """Whether the libraries of this very lock file were downloaded."""
        return not self.lock or (
            self._note.is_file() and self._note.read_text("utf-8") == self._digest
        )

    def run_with(self, target: str) -> list[str]:
        """Return the command that runs it against a server, HOST:PORT."""
        return [one.replace("TARGET", target) for one in self.run]

    def install_libraries(self) -> None:
        """Download the libraries and the tools of the build, and build once."""
        for command in (self.install, *self.build):
            subprocess.run(
                command,
                cwd=self.folder,
                env=environment(),
                stdout=subprocess.DEVNULL,
                check=True,
            )
        self._note.parent.mkdir(parents=True, exist_ok=True)
        self._note.write_text(self._digest, "utf-8")

    @property
    def _note(self) -> Path:
        return self.folder / "build" / "installed"

    @property
    def _digest(self) -> str:
        return hashlib.sha256((self.folder / self.lock).read_bytes()).hexdigest()


PYTHON = Example("python", run=(sys.executable, "main.py", "TARGET"))
COMPILED = (
    Example(
        "typescript",
        tools=("node", "npm"),
        lock="package-lock.json",
        install=("npm", "ci", "--silent"),
        build=(("npm", "run", "--silent", "generate"), ("npm", "run", "--silent", "build")),
        run=("npm", "run", "--silent", "start", "TARGET"),
    ),
    Example(
        "java",
        tools=("mvn", "javac"),
        lock="pom.xml",
        # The second goal needs what running needs, and only prints.
        install=(*_MAVEN, "compile", "exec:help"),
        build=((*_MAVEN, "--offline", "compile"),),
        run=(*_MAVEN, "--offline", "exec:java", "-Dexec.args=TARGET"),
    ),
    Example(
        "rust",
        tools=("cargo",),
        lock="Cargo.toml",
        install=("cargo", "fetch", "--quiet"),
        build=(("cargo", "build", "--quiet", "--offline"),),
        run=("cargo", "run", "--quiet", "--offline", "--", "TARGET"),
    ),
)


def environment(**more: str) -> Mapping[str, str]:
    """Return the variables with which the tools keep what they download in .cache."""
    # Where `buf` is, among the tools of this project.
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "CARGO_HOME": str(CACHE / "cargo"),
        "CARGO_TARGET_DIR": str(CACHE / "rust"),
        "GOCACHE": str(CACHE / "go-build"),
        "GOMODCACHE": str(CACHE / "go"),
        # Else nobody but root could delete the cache.
        "GOFLAGS": "-modcacherw",
        "npm_config_cache": str(CACHE / "npm"),
        **more,
    }


def main() -> None:
    """Build every example whose tools are here."""
    for example in COMPILED:
        missing = example.missing_tools
        if missing:
            print(f"{example.name}: left out, {', '.join(missing)} is not installed")
        else:
            example.install_libraries()
            print(f"{example.name}: built")


if __name__ == "__main__":
    main()
