"""The service as a user runs it: the command, in its own process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.client import Client
from tests.service.grpcurl import Grpcurl

FIXTURES = Path(__file__).parent.parent / "fixtures"
# All but the adapters, whose base model is a folder of its own, and the models with routes.
FOLDERS = sorted(
    path.name
    for path in FIXTURES.iterdir()
    if (path / "idf.json").exists()
    or ((path / "tokenizer.json").exists() and not (path / "adapter_config.json").exists())
)
# One of each kind, in the default run; tests marked `slow` have them all.
FEW = (
    "bert-mean",
    "bert-prompt-left-out",
    "classify-nli",
    "classify-toxicity",
    "cross-bert",
    "cross-gemma-causal",
    "cross-qwen2-causal",
    "cross-qwen3-causal",
    "cross-xlmr",
    "modernbert-mean",
    "qwen3-last",
    "splade-bert",
    "splade-idf",
    "static-potion",
    "task-by-prompt",
    "xlmr-bge-m3",
    "xlmr-metaspace",
)
TOOLS = Path(__file__).parent.parent.parent / ".cache" / "bin"


@contextmanager
def running_server(*flags: str, cache_dir: Path) -> Iterator[str]:
    """Run `embedgrpc serve` on a free port; yield its address once it serves."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "embedgrpc.cli.main", "serve", "--address", "127.0.0.1:0"),
            *("--log-format", "json", "--device", "cpu", "--cache-dir", str(cache_dir), *flags),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "serving":
                yield event["address"]
                break
        else:
            pytest.fail(f"the server ended with {process.wait()} before it served")
    finally:
        process.terminate()
        process.stderr.close()
        assert process.wait(60) == 0


@pytest.fixture(scope="session")
def target(cache_dir: Path) -> Iterator[str]:
    """The address of a server with its defaults."""
    with running_server(cache_dir=cache_dir) as address:
        yield address


def in_turn(*names: str) -> list[Any]:
    """Return parameters: all names, those that are not in the default run marked `slow`."""
    return [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in names]


@pytest.fixture(scope="session")
def fixture_target(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a model of each kind from local folders."""
    with _serving_folders(FEW, cache_dir, tmp_path_factory) as address:
        yield address


@pytest.fixture(scope="session")
def every_target(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with all models from local folders."""
    with _serving_folders(FOLDERS, cache_dir, tmp_path_factory) as address:
        yield address


@contextmanager
def _serving_folders(
    names: Iterable[str], cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    flags = [flag for name in names for flag in ("--model", str(FIXTURES / name))]
    vocabulary = tmp_path_factory.mktemp("models") / "vocabulary"
    shutil.copytree(
        FIXTURES / "bert-mean", vocabulary, ignore=shutil.ignore_patterns("tokenizer.json")
    )
    shortened = vocabulary.with_name("shortened")
    shutil.copytree(FIXTURES / "bert-mean", shortened)
    extras = shortened / "config_sentence_transformers.json"
    extras.write_text(json.dumps(json.loads(extras.read_text()) | {"truncate_dim": 8}))
    flags += ["--model", f"vocabulary={vocabulary}", "--model", f"shortened={shortened}"]
    with running_server(*flags, cache_dir=cache_dir) as address:
        yield address


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    """A client of the server with its defaults."""
    with Client(target) as client:
        yield client


@pytest.fixture
def fixture_client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of the server with models of `FEW`, or with all of them in a slow test."""
    is_slow = request.node.get_closest_marker("slow") is not None
    with Client(request.getfixturevalue("every_target" if is_slow else "fixture_target")) as client:
        yield client


@pytest.fixture(scope="session")
def grpcurl(target: str) -> Grpcurl:
    """Return the path of the program; the checks install it where Go is present."""
    program = shutil.which("grpcurl", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        if os.environ.get("CI") and shutil.which("go"):
            pytest.fail("grpcurl is missing although Go could have installed it")
        pytest.skip("grpcurl is not installed")
    return Grpcurl(program, target)
