import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.client import MultiVector, SparseVector, StreamResult
from embedgrpc.client.cli import main
from embedgrpc.client.cli_commands import _as_json, _summary
from embedgrpc.client.defaults import RESPONSE_BYTES_MAX
from embedgrpc.v1 import classify_service_pb2, rerank_service_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.made_up import DIMENSIONS, vector_of
from tests.client.servicer import Script
from tests.warm_python import Done, run_warm

COMMAND = str(Path(sys.executable).parent / "embedgrpc-client")
Run = Callable[..., Done]


@pytest.fixture
def run(target: str) -> Run:
    """Run the command to its end, and assert its exit code."""

    def run_command(*arguments: str, stdin: str | bytes = "", status: int = 0) -> Done:
        finished = run_warm(
            "from embedgrpc.client.cli import main\nraise SystemExit(main())",
            *arguments,
            environment=os.environ | {"EMBEDGRPC_TARGET": target, "NO_COLOR": "1"},
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
        )
        assert finished.code == status, finished.err
        return finished

    return run_command


def lines(finished: Done) -> list[Any]:
    """Parse the output of a command."""
    return [json.loads(line) for line in finished.out.splitlines()]


def test_embed_writes_a_line_for_each_line(run: Run) -> None:
    """Ids are line numbers; the last line needs no newline, and CRLF ends a line too."""
    texts = ["a tower", "long river", "塔"]
    written = lines(run("embed", stdin="a tower\r\nlong river\n塔"))
    assert written == [
        {
            "id": str(number),
            "vector": vector_of(text).tolist(),
            "token_count": len(text),
            "truncated": text.startswith("long"),
        }
        for number, text in enumerate(texts)
    ]


def test_embed_reads_json_lines(run: Run) -> None:
    """Ids may be of any JSON type and come back unchanged; without --jsonl, JSON is text."""
    stdin = '{"id": 7, "text": "a"}\n{"text": "b"}\n{"id": [1], "text": "c", "more": 0}\n'
    assert [line["id"] for line in lines(run("embed", "--jsonl", stdin=stdin))] == [7, "1", [1]]
    (first, *_) = lines(run("embed", stdin=stdin))
    assert first["vector"] == vector_of('{"id": 7, "text": "a"}').tolist()


def test_embed_passes_its_options_on(run: Run, script: Script) -> None:
    """Each option reaches the setup of the stream."""
    arguments = "--model m --input-type query --dimensions 8 --encoding int8 --truncation none"
    more = "--no-normalize --max-tokens 5 --order completion --batch-size 1"
    (written,) = lines(run("embed", *arguments.split(), *more.split(), stdin="a"))
    assert written["scale"] == 0.5
    assert len(written["vector"]) == 8
    setup = script.calls[0]
    assert (setup.model, setup.order) == ("m", 2)
    options = setup.options
    assert (options.input_type, options.dimensions, options.encoding) == (1, 8, 4)
    assert (options.truncation, options.normalize, options.max_tokens) == (1, False, 5)
    assert options.HasField("normalize")
    run("embed", "--prompt-text", "", stdin="a")
    assert script.calls[1].options.WhichOneof("prompt") == "prompt_text"
    assert script.calls[1].options == pb.EmbedOptions(
        prompt_text="", encoding="VECTOR_ENCODING_FLOAT32"
    )


def test_embed_writes_the_chunks_of_a_text(run: Run, script: Script) -> None:
    """Each with its place and its vector; the options reach the setup of the stream."""
    arguments = "--chunk-tokens 3 --chunk-overlap 1"
    (written,) = lines(run("embed", *arguments.split(), stdin="some text"))
    assert script.calls[-1].options.chunking == pb.Chunking(
        tokens=pb.ChunkByTokens(size=3, overlap=1)
    )
    assert [(one["start"], one["end"], one["token_count"]) for one in written["chunks"]] == [
        (0, 4, 4),
        (5, 9, 4),
    ]
    assert [one["vector"] for one in written["chunks"]] == [
        vector_of(part).tolist() for part in ("some", "text")
    ]
    (coded,) = lines(run("embed", "--chunk-sentences", "2", "--encoding", "int8", stdin="a b"))
    assert [one["scale"] for one in coded["chunks"]] == [0.5, 0.5]
    assert script.calls[-1].options.chunking == pb.Chunking(sentences=pb.ChunkBySentences(count=2))


def test_a_line_that_fails_is_told_after_the_others(run: Run) -> None:
    """Its error is among the results; the exit code is 1."""
    finished = run("embed", stdin="a\nfail:EMPTY_INPUT\nb\n", status=1)
    assert lines(finished)[1] == {
        "id": "1",
        "error": {"reason": "EMPTY_INPUT", "message": "as asked"},
    }
    assert len(lines(finished)) == 3
    assert finished.err == "embedgrpc-client: 1 of 3 texts failed\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--jsonl"], '{"text": "a"}\nsecret\n', 'line 1 is not a JSON object with a "text"'),
        (["--jsonl"], '{"text": 3}\n', 'line 0 is not a JSON object with a "text"'),
        (["--jsonl"], '{"text": "\\ud800 secret"}\n', "inputs[0] has a lone surrogate"),
        ([], b"a\nsecret \xff\n", "line 1 is not UTF-8 at byte 7"),
        ([], b"x" * (2**24 + 1), "line 0 has more than 16777216 bytes"),
        (["--model", "absent"], "a\n", "MODEL_NOT_FOUND: no such model"),
    ],
)
def test_a_failure_is_one_line(
    run: Run, arguments: list[str], stdin: str | bytes, message: str
) -> None:
    """The exit code is 1; one line names the place, without the text and without a traceback."""
    finished = run("embed", *arguments, stdin=stdin, status=1)
    assert message in finished.err
    assert finished.err.count("\n") == 1
    assert "secret" not in finished.err


def test_results_appear_while_input_is_still_open(target: str) -> None:
    """With --batch-size 1, each line has its result before the next line is read."""
    # A shell lets background jobs ignore interrupts, and their children inherit that.
    heeding = ["env", "--default-signal=INT"]
    with subprocess.Popen(
        [*heeding, COMMAND, "embed", "--target", target, "--batch-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write("text\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == str(number)
        process.stdin.close()
        assert process.wait(10) == 0


def test_ctrl_c_ends_quietly_although_input_is_open(target: str) -> None:
    """An interrupt while waiting for a line leaves no message and no crash."""
    # A shell lets background jobs ignore interrupts, and their children inherit that.
    heeding = ["env", "--default-signal=INT"]
    with subprocess.Popen(
        [*heeding, COMMAND, "embed", "--target", target, "--batch-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("text\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == ""


def test_a_reader_that_has_enough_ends_the_command_quietly(target: str) -> None:
    """A closed pipe ends an endless run without a message."""
    with subprocess.Popen(  # noqa: S602 -- the test needs a shell's pipe
        f"yes | {COMMAND} embed --target {target} | head -n 2",
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = process.communicate(timeout=20)
    assert len(out.splitlines()) == 2
    assert err == ""


def test_rerank_writes_the_best_first(run: Run, script: Script) -> None:
    """Documents are lines; their texts come back with the scores."""
    written = lines(run("rerank", "--query", "abc", "--top-n", "2", stdin="xyz\nabc\nab\n"))
    assert written == [
        {"index": 1, "score": 3.0, "document": "abc"},
        {"index": 2, "score": 2.0, "document": "ab"},
    ]
    run("rerank", "--query", "q", "--score-scale", "raw", "--truncation", "start", stdin="d\n")
    options = script.calls[1].options
    assert (options.score_scale, options.truncation) == (1, 3)
    run("rerank", "--query", "q", "d")
    assert script.calls[2] == rerank_service_pb2.RerankRequest(
        query="q", documents=["d"], max_response_bytes=RESPONSE_BYTES_MAX
    )
    more = "--max-tokens 5 --priority bulk --instruction i --document-prompt-name p --allow-partial"
    finished = run("rerank", "--query", "q", *more.split(), "d", "fail:EMPTY_INPUT", status=1)
    assert lines(finished)[1] == {
        "index": 1,
        "error": {"reason": "EMPTY_INPUT", "message": "as asked"},
    }
    assert finished.err == "embedgrpc-client: 1 of 2 documents failed\n"
    assert script.calls[3].options == rerank_service_pb2.RerankOptions(
        max_tokens=5, priority="PRIORITY_BULK", instruction="i", document_prompt_name="p"
    )
    finished = run("rerank", "--query", "q", stdin=("x" * 2**23 + "\n") * 3, status=1)
    assert "documents have more than 16777216 characters" in finished.err


def test_classify_writes_the_labels(run: Run, script: Script) -> None:
    """A line for each text, alone or with the same second text; a text that fails, fails alone."""
    written = lines(run("classify", stdin="abc\na longer one\n"))
    assert written[0] == {
        "id": "0",
        "labels": [{"label": "short", "score": -3.0}, {"label": "long", "score": 3.0}],
        "token_count": 3,
        "truncated": False,
    }
    assert [line["truncated"] for line in written] == [False, True]
    more = "--score-function raw --top-k 1 --order model --truncation start --max-tokens 9"
    finished = run(
        *("classify", "--second", "b", "--model", "m", "--priority", "bulk", *more.split()),
        *("a", "fail:EMPTY_INPUT"),
        status=1,
    )
    assert lines(finished)[1] == {
        "id": "1",
        "error": {"reason": "EMPTY_INPUT", "message": "as asked"},
    }
    assert finished.err == "embedgrpc-client: 1 of 2 texts failed\n"
    sent = [one.pair for message in script.messages[-1:] for one in message.batch.inputs]
    assert [(pair.first, pair.second) for pair in sent] == [("a", "b"), ("fail:EMPTY_INPUT", "b")]
    assert script.calls[-1].options == classify_service_pb2.ClassifyOptions(
        score_function="SCORE_FUNCTION_RAW",
        top_k=1,
        order="LABEL_ORDER_MODEL",
        truncation="TRUNCATION_START",
        max_tokens=9,
        priority="PRIORITY_BULK",
    )
    many = lines(run("classify", "--result-order", "completion", stdin="a\n" * 70))
    assert sorted(int(line["id"]) for line in many) == list(range(70))
    assert script.calls[-1].order == pb.RESULT_ORDER_COMPLETION


def test_tokens_writes_a_line_for_each_text(run: Run, script: Script) -> None:
    """More texts than one call holds are counted in several calls."""
    written = lines(run("tokens", "--input-type", "query", stdin="ab\n" * 70))
    assert written == [{"id": str(number), "token_count": 3} for number in range(70)]
    assert [len(call.texts) for call in script.calls] == [64, 6]
    assert script.calls[0].options.input_type == 1


def test_server_describes_the_server(run: Run) -> None:
    """The description is one JSON object."""
    (written,) = lines(run("server"))
    assert (written["version"], written["limits"]["max_inputs"]) == ("1.2.3", 100)
    assert written["start_time"] == "2023-11-14T22:13:20+00:00"


def test_models_writes_a_line_for_each_model(run: Run) -> None:
    """The output has the models of all pages, one JSON object a line."""
    written = lines(run("models", "--task", "embed"))
    assert [model["id"] for model in written] == [f"model-{number}" for number in range(5)]
    assert written[0]["prompts"] == {"query": "query: "}


@pytest.mark.parametrize(
    ("service", "status", "text"),
    [
        ([], 0, "SERVING"),
        (["stopping"], 1, "NOT_SERVING"),
        (["other"], 1, "SERVICE_UNKNOWN"),
        (["", "stopping"], 1, "SERVING\nNOT_SERVING"),
        (["--any", "stopping", ""], 0, "NOT_SERVING\nSERVING"),
        (["--any", "stopping", "other"], 1, "NOT_SERVING\nSERVICE_UNKNOWN"),
    ],
)
def test_health_serves_as_a_check(run: Run, service: list[str], status: int, text: str) -> None:
    """The exit code is 0 only if the service is SERVING."""
    assert run("health", *service, status=status).out == f"{text}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("health --target {closed}", 1, "the connection to {closed} failed; is a server running"),
        ("embed a --target {closed}", 1, "the connection to {closed} failed; is a server running"),
        ("embed a --model absent", 1, "MODEL_NOT_FOUND: no such model"),
        ("embed --jsonl a", 2, "--jsonl reads standard input: give no texts with it"),
        ("", 2, "the following arguments are required: COMMAND"),
        ("modles", 2, "argument COMMAND: no 'modles'; did you mean models?"),
        ("models --taks embed", 2, "no option '--taks'; did you mean --task?"),
        ("models --task embedd", 2, "argument --task: no 'embedd'; did you mean embed?"),
        ("models --timeout-s nan", 2, "argument --timeout-s: 'nan' is not a number from 0.001 to"),
        ("models --target=", 2, "--target is empty: give HOST:PORT or unix:PATH"),
        ("embed --encoding float64", 2, "argument --encoding: no 'float64'; did you mean float16?"),
        ("embed --batch-size 0", 2, "argument --batch-size: '0' is not a whole number from 1 to"),
        ("embed --dimensions=-1", 2, "argument --dimensions: '-1' is not a whole number from 0 to"),
        ("embed --max-tokens 2147483648", 2, "'2147483648' is not a whole number from 0 to 214"),
        ("embed --prompt-name a --prompt-text b", 2, "not allowed with argument --prompt-name"),
        ("embed \udcff", 2, r"the argument '\udcff' is not UTF-8"),
        (
            "embed --chunk-tokens 3 --chunk-sentences 3",
            2,
            "not allowed with argument --chunk-tokens",
        ),
        ("embed --chunk-tokens 3 --chunk-overlap 3", 2, "--chunk-overlap must be less than"),
        ("embed --chunk-overlap 3", 2, "--chunk-overlap must be less than --chunk-tokens"),
        ("rerank", 2, "the following arguments are required: --query"),
    ],
)
def test_an_error_is_one_line(run: Run, arguments: str, code: int, line: str) -> None:
    """The line names the argument; the exit code is 2 for wrong usage, 1 for a failure."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{bound.getsockname()[1]}"
        finished = run(*(part.format(closed=closed) for part in arguments.split()), status=code)
    assert finished.out == ""
    assert finished.err.startswith("embedgrpc-client")
    assert line.format(closed=closed) in finished.err
    assert finished.err.count("\n") == 1
    assert ("--help)" in finished.err) == (code == 2)


def test_texts_may_be_arguments(run: Run) -> None:
    """Texts and documents on the command line replace standard input."""
    written = lines(run("embed", "a tower", "b", stdin="unread"))
    assert [line["vector"] for line in written] == [vector_of(t).tolist() for t in ("a tower", "b")]
    ranked = lines(run("rerank", "--query", "abc", "xyz", "ab", stdin="unread"))
    assert [line["document"] for line in ranked] == ["ab", "xyz"]


def test_a_terminal_gets_a_summary(target: str) -> None:
    """On a terminal, `embed` prints the start of a vector and says that it reads standard input."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [COMMAND, "embed", "--target", target],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(terminal)
        assert process.stderr is not None
        assert "one text a line; end with Ctrl-D" in process.stderr.readline()
        os.write(controller, b"long tower\nfail:EMPTY_INPUT\n\x04")
        start = ", ".join(f"{number:.4g}" for number in vector_of("long tower")[:4])
        written = ""
        while "1: EMPTY_INPUT: as asked\r\n" not in written:
            written += os.read(controller, 4096).decode()
        assert f"0: 10 tokens (truncated), {DIMENSIONS} x float32 [{start}, ...]\r\n" in written
        assert process.stderr.readline() == "embedgrpc-client: 1 of 2 texts failed\n"
        assert process.wait(60) == 1
    os.close(controller)


def test_every_representation_is_written() -> None:
    """A model's first representation may be sparse, or one vector for each token."""
    result = StreamResult(
        "0",
        sparse=SparseVector(np.array([3, 7]), np.array([0.5, 2], np.float32), 1000),
        multi_vector=MultiVector(np.ones((2, 1), np.float32), None, 1),
        token_count=2,
    )
    assert _as_json(result) == {
        "id": "0",
        "sparse": {3: 0.5, 7: 2.0},
        "multi_vector": [[1.0], [1.0]],
        "token_count": 2,
        "truncated": False,
    }
    assert _summary(result) == "0: 2 tokens, 2 sparse terms, 2 vectors"


def test_version_is_that_of_the_package() -> None:
    """`--version` needs no command; here it is the installed one that runs."""
    done = subprocess.run([COMMAND, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"embedgrpc-client {version('embedgrpc-client')}\n"


def test_help_loads_nothing_large() -> None:
    """Neither gRPC nor numpy nor protobuf is imported before the arguments are parsed."""
    program = (
        "import sys; from embedgrpc.client.cli import main\n"
        "try: main(['embed', '--help'])\n"
        "except SystemExit: sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    loaded = done.stderr.split()
    assert "embedgrpc.client.cli_arguments" in loaded
    assert not {"grpc", "numpy", "google.protobuf", "embedgrpc.client.public"} & set(loaded)


@pytest.mark.parametrize(
    "command", ["embed", "rerank", "classify", "tokens", "models", "server", "health"]
)
def test_help_is_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has a help, and the help of the program has an example of it."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: embedgrpc-client {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"  embedgrpc-client {command}" in capsys.readouterr().out
