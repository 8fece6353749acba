"""Whatever a child does, the process that started it goes on, and none is left."""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.models.validation.child_process import ChildError, ChildGroup, Work, run_child

_PATIENCE_S = 60.0


def _work(name: str, *, timeout_s: float = _PATIENCE_S, answer: Any = lambda _: {}) -> Work:
    return Work(
        module="tests.models.validation.child_works", job=name, timeout_s=timeout_s, answer=answer
    )


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_it_asks_and_answers() -> None:
    """A child's questions are answered by whoever started it."""
    asked = []

    def answer(message: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append(message)
        return {"answer": 2}

    result = run_child(_work("answer", answer=answer), ChildGroup())
    assert asked == [{"question": 1}]
    assert result == {"result": {"answer": 2}}


def test_what_libraries_print_is_no_answer() -> None:
    """Only what the child says on purpose counts."""
    assert run_child(_work("print"), ChildGroup()) == {"result": "mine"}


def test_it_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and keys stay out of a process that reads untrusted files."""
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_HOME", "kept")
    environment = run_child(_work("tell_environment"), ChildGroup())["result"]
    assert "secret" not in environment.values()
    assert environment["HF_HOME"] == "kept"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    # Its name looks like that of a secret. Without it a tokenizer starts a thread for each core.
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_it_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is started in a model's folder does not run what lies there."""
    (tmp_path / "json.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    path = run_child(_work("tell_path"), ChildGroup())["result"]
    assert "" not in path
    assert str(tmp_path) not in path


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("crash", "was ended by signal SIGSEGV"),
        ("leave", "exit code 3"),
        ("babble", "no answer that could be read"),
        ("talk_nonsense", "exit code 0"),
        ("no such work", "exit code 1"),
    ],
)
def test_a_child_that_fails_is_told(name: str, problem: str) -> None:
    """However a child ends, the error says so."""
    with pytest.raises(ChildError, match=problem):
        run_child(_work(name), ChildGroup())


def test_a_child_that_hangs_is_ended() -> None:
    """The limit on time is kept, and nothing is left."""
    said: list[Any] = []
    with pytest.raises(ChildError, match="took longer than 1 s") as caught:
        run_child(_work("hang", timeout_s=1, answer=said.append), ChildGroup())
    assert caught.value.timed_out
    assert not any(_is_there(message["pid"]) for message in said)


def test_the_time_of_an_answer_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download takes as long as it takes."""
    passed_s = 0.0
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + passed_s)

    def answer(_: Any) -> Mapping[str, Any]:
        nonlocal passed_s
        passed_s = 10 * _PATIENCE_S
        return {}

    run_child(_work("wait_for_answer", answer=answer), ChildGroup())


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_memory_is_limited() -> None:
    """A child that takes more memory than it may gets an error, not the machine's memory."""
    assert run_child(_work("eat"), ChildGroup()) == {"result": "out of memory"}


def test_a_leash_ends_a_child_at_once() -> None:
    """Who does not need a child any more need not wait for it."""
    children, pids = ChildGroup(), []

    def answer(message: Mapping[str, Any]) -> None:
        pids.append(message["pid"])
        threading.Thread(target=children.end).start()

    with pytest.raises(ChildError, match="SIGKILL"):
        run_child(_work("hang", answer=answer), children)
    assert not _is_there(pids[0])


def test_a_leash_that_was_ended_lets_no_child_live() -> None:
    """A child that is started too late ends at once."""
    children = ChildGroup()
    children.end()
    with pytest.raises(ChildError):
        run_child(_work("hang"), children)


_STARTER = """
import sys
sys.path.append(sys.argv[1])
from embedgrpc.models.validation.child_process import ChildGroup, Work, run_child
def answer(message):
    print(message["pid"], flush=True)
run_child(Work("tests.models.validation.child_works", "hang", 600, answer), ChildGroup())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a signal of Linux")
def test_a_child_ends_with_its_parent() -> None:
    """A server that is killed leaves no child behind."""
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(Path(__file__).parents[3])], stdout=subprocess.PIPE
    )
    try:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert _is_there(pid)
    finally:
        starter.kill()
        starter.communicate()
    _wait_for_end(pid)


def _wait_for_end(pid: int) -> None:
    """Waits until a process that is no child of ours is gone, or is a zombie of its new parent."""
    end = threading.Event()
    for _ in range(int(_PATIENCE_S / 0.01)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        end.wait(0.01)
    raise AssertionError("it lives")
