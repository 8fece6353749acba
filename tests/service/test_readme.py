"""What the README and the documentation show is what happens."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from embedgrpc.server.settings.model_settings import DEFAULT_MODEL
from tests.service.conftest import running_server
from tests.settings_table import DOCUMENT, render
from tests.triton.environment import Environment
from tests.triton.server import TritonServer

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
MODELS = ROOT / "docs" / "models.md"
TRITON = ROOT / "docs" / "triton.md"
DOCUMENTED_TARGET = "127.0.0.1:50051"
DOCUMENTED_TRITON = "127.0.0.1:8001"
_BLOCK = re.compile(
    r"^(?:<!-- runnable: (?P<name>\w+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def runnable(document: Path) -> dict[str, str]:
    """Return the blocks that are marked as runnable, by name."""
    blocks = _BLOCK.finditer(document.read_text("utf-8"))
    return {block["name"]: block["code"] for block in blocks if block["name"]}


def block(document: Path, language: str) -> str:
    """Return the only block of a language."""
    found = _BLOCK.finditer(document.read_text("utf-8"))
    (code,) = [one["code"] for one in found if one["language"] == language]
    return code


def test_every_runnable_block_is_run() -> None:
    """The tests below run each block that is marked, so that none is marked in vain."""
    assert set(runnable(README)) == {"serve", "embed", "python"}
    assert set(runnable(TRITON)) == {"triton"}


def test_the_first_commands_serve_and_embed(target: str) -> None:
    """The first installs uv and serves with the defaults; the second embeds a line."""
    first, second = runnable(README)["serve"], runnable(README)["embed"]
    uv = ".uv/bin/uv run "
    assert first == f"python3 -m pip install --target .uv uv && {uv}embedgrpc serve\n"
    assert uv in second
    done = subprocess.run(
        ["/bin/sh", "-c", second.replace(uv, f"{Path(sys.executable).parent}/")],
        env={**os.environ, "EMBEDGRPC_TARGET": target},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len(json.loads(done.stdout)["vector"]) == 384


def test_the_tables_of_settings_are_current() -> None:
    """docs/configuration.md lists every setting with its default and description."""
    document = DOCUMENT.read_text("utf-8")
    assert document == render(document), "run: uv run python -m tests.settings_table"


def test_the_documentation_shows_what_inspect_prints() -> None:
    """The page shows what the command says of the default model, but for where it lies."""
    done = subprocess.run(
        [sys.executable, "-m", "embedgrpc.cli.main", "inspect", DEFAULT_MODEL.source],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    shown = MODELS.read_text("utf-8").splitlines()
    for line in done.stdout.splitlines():
        assert line in shown or line.startswith("folder")


def test_the_python_example_prints_what_stands_below_it(target: str) -> None:
    """The example runs as it is, and its output is the README's."""
    example, output = runnable(README)["python"], block(README, "text")
    done = subprocess.run(
        [sys.executable, "-c", example.replace(DOCUMENTED_TARGET, target)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == output


@pytest.mark.long
@pytest.mark.triton
def test_the_way_from_a_name_to_a_call_through_triton(
    triton_environment: Environment, tmp_path: Path, cache_dir: Path
) -> None:
    """The five commands run as they are, but for where models and Triton come from."""
    script = runnable(TRITON)["triton"]
    lines = [line.replace("uv run ", "") for line in script.replace("\\\n", "").splitlines()]
    write, run_triton, serve, embed, verify = (shlex.split(line) for line in lines)
    assert run_triton[:2] == ["docker", "run"]
    assert {"--model-repository=/models", "--disable-auto-complete-config"} <= set(run_triton)
    text, pipe, embed = embed[1], embed[2], embed[3:]
    assert pipe == "|"
    hub_name = write[2].removeprefix("minilm=")
    assert serve[:2] == ["embedgrpc", "serve"]

    def run(command: list[str], *, text: str = "", **places: str) -> str:
        program, *arguments = (places.get(one, one) for one in command)
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    repository = tmp_path / "repository"
    places = {
        write[2]: f"minilm={DEFAULT_MODEL.source}",
        hub_name: DEFAULT_MODEL.source,
        "repository": str(repository),
    }
    run(write, **places)
    flags = ("--disable-auto-complete-config",)
    with TritonServer(triton_environment, repository, flags=flags) as triton:
        source = serve[3].replace(DOCUMENTED_TRITON, triton.address)
        with running_server("--model", source, cache_dir=cache_dir) as address:
            told = run([*embed, "--target", address], text=text)
            assert len(json.loads(told)["vector"]) == 384
        told = run(verify, **places, **{verify[2]: source})
    assert "reference" in told
    assert "WRONG" not in told
