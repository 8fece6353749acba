"""The benchmarks run; their figures are not looked at: these machines are noisy."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.environment import EnvironmentMissingError, find_frameworks
from tests.triton.environment import Environment

# Answers as `benchmarks.peer_loop` does, with the same vector for every text.
_LIAR = """
import json, sys
texts = {}
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "prepare":
        texts[request["name"]] = len(request["texts"])
    vectors = [[1.0] * 384] * texts[request["name"]]
    print(json.dumps({"seconds": 1.0, "vectors": vectors}), flush=True)
"""

# Takes the flags of text-embeddings-inference, and serves its contract with the default model.
_SERVER_LIKE_TEI = """
import os, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
assert os.path.exists(flags["--model-id"] + "/model.onnx")
address = flags["--hostname"] + ":" + flags["--port"]
command = [sys.executable, "-m", "embedgrpc.cli.main", "serve", "--address", address]
os.execv(sys.executable, [*command, "--tei-model", "all-MiniLM-L6-v2"])
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (
            ["throughput", "--rounds", "1", "--texts", "8"],
            ["| passages | served, stream |", "| short | served, unary,", "| mixed | served: real"],
        ),
        (
            ["lone", "--calls", "3", "--rounds", "1", "--against=--lanes 1"],
            ["| session, spinning |", "| server |", "| server --lanes 1 |"],
        ),
        (["latency", "--calls", "5"], ["| about 100 words each |"]),
        (
            ["beside", "--rounds", "1", "--calls", "5", "--against=--lanes 1"],
            ["| alone | server |", "| beside 2 bulk streams | server --lanes 1 |"],
        ),
        (
            ["startup", "--rounds", "1", "--documents", "8"],
            ["| to SERVING, graph in the cache |", "| after 8 abstracts |"],
        ),
        (
            [
                *("load", "--workload", "queries", "--seconds", "0.1", "--loads", "50,200"),
                *("--flags", "", "--flags", "--lanes 2", "--plots", "{folder}"),
            ],
            ["| 64 | --lanes 2 |", "| 200 % | defaults |", "({folder}/queries-float32.svg)"],
        ),
        (
            [
                *("overload", "--workload", "queries", "--seconds", "0.2", "--settle-s", "0.1"),
                *("--factors", "2"),
            ],
            ["| offered / capacity | 0.8 | 1 | 2 |", "| goodput / best |", "| failed health"],
        ),
        (
            ["doors", "--rounds", "1", "--requests", "16"],
            [
                "| instant | 1 | gRPC Embed |",
                "| real | 32 | OpenAI, base64 |",
                "| TEI /embed |",
                "| KServe ModelInfer |",
                "| tei.v1 EmbedStream |",
            ],
        ),
        (
            ["bursts", "--rounds", "1", "--long", "4", "--short", "8", "--quiet-s", "0.1"],
            ["| 4 times 1 text a call: about 150 words | 4 | 0 |", "| 8 times 1 text a call"],
        ),
        (["bulk", "--rows", "200", "--rounds", "1"], ["| bulk | ", "| bulk / bare stream | "]),
        (
            ["client_encode", "--texts", "200", "--rounds", "1"],
            ["| encode | 200 |", "| encode / raw embed_stream |"],
        ),
        (
            ["int8_speed", "--rounds", "1", "--texts", "8"],
            ["| about 100 words each | stream |", "| 5 to 16 words | 32 calls in flight |"],
        ),
        (
            ["calls_cost", "--rounds", "2"],
            ["| tiny | authentication,", "| MiniLM | authentication,"],
        ),
    ],
    ids=[
        "throughput",
        "lone",
        "latency",
        "beside",
        "startup",
        "load",
        "overload",
        "doors",
        "bursts",
        "bulk",
        "client_encode",
        "int8_speed",
        "calls_cost",
    ],
)
def test_a_benchmark_prints_its_table(
    arguments: list[str], rows: list[str], tmp_path: Path
) -> None:
    """A short run ends well and prints the rows that the figures are taken from."""
    output = _run(*(argument.format(folder=tmp_path) for argument in arguments))
    for row in rows:
        assert row.format(folder=tmp_path) in output


def test_the_benchmark_of_kinds_measures_any_folder(tmp_path: Path) -> None:
    """The name of a folder says what is measured."""
    fixtures = Path(__file__).parent / "fixtures"
    kinds = {
        "embed-static": "static-st",
        "sparse": "splade-bert",
        "late": "colbert-bert",
        "rerank": "cross-bert",
        "classify": "classify-sentiment",
    }
    for name, fixture in kinds.items():
        (tmp_path / name).symlink_to(fixtures / fixture)
    folders = [str(tmp_path / name) for name in kinds]
    output = _run("kinds", "--rounds", "1", "--texts", "8", *folders)
    for name in kinds:
        assert f"| {name} | " in output


def test_the_benchmark_of_peers_compares_only_equal_vectors(tmp_path: Path) -> None:
    """It prints what is measured beside the server; other weights under the same name end it."""
    try:
        python = find_frameworks("frameworks-torch")
    except EnvironmentMissingError as obstacle:
        pytest.skip(str(obstacle))
    flags = ["--rounds", "1", "--texts", "8", "--calls", "2"]
    tei = tmp_path / "text-embeddings-router"
    tei.write_text(f"#!{sys.executable}\n{_SERVER_LIKE_TEI}")
    tei.chmod(0o755)
    picture = tmp_path / "peers.svg"
    output = _run("peers", *flags, "--tei", str(tei), "--plot", str(picture))
    assert "sentence-transformers" in picture.read_text("utf-8")
    for row in (
        "| 5 to 16 words, a list | TEI |",
        "| about 100 words each, lone, p50 | TEI |",
        "| about 100 words each, a list | server, int8 |",
        "| 5 to 16 words, a list | sentence-transformers |",
        "| 5 to 16 words, lone, p50 | sentence-transformers |",
        "| sentence-transformers | ",
    ):
        assert row in output
    liar = tmp_path / "python"
    liar.write_text(f"#!{python}\n{_LIAR}")
    liar.chmod(0o755)
    lying = ["--sentence-transformers", str(liar)]
    command = [sys.executable, "-m", "benchmarks.peers", *flags, *lying]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode != 0
    assert "sentence-transformers has other vectors: the cosine of a text is " in done.stderr
    assert done.stdout == ""


@pytest.mark.triton
def test_the_benchmark_of_triton_prints_its_tables(triton_environment: Environment) -> None:
    """It starts a tritonserver of its own."""
    del triton_environment  # where there is none this is skipped
    output = _run("upstream", "--rounds", "1", "--texts", "16", "--calls", "3")
    for row in ("| tritonclient |", "| embedgrpc, stream |", "| embedgrpc, 1 text, 32 in flight |"):
        assert row in output


def _run(name: str, *flags: str) -> str:
    """Runs a benchmark; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *flags],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
