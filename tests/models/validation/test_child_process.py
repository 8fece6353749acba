"""A child may fail in any way: its parent goes on, and no process is left."""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.models.validation.child_process import ChildCall, ChildError, ChildGroup, run_child

_PATIENCE_S = 60.0


def _call(name: str, *, timeout_s: float = _PATIENCE_S, answer: Any = lambda _: {}) -> ChildCall:
    return ChildCall(
        module="tests.models.validation.child_jobs", job=name, timeout_s=timeout_s, answer=answer
    )


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_child_gets_answers() -> None:
    """The parent answers a child's messages until the result comes."""
    received = []

    def answer(message: Mapping[str, Any]) -> Mapping[str, Any]:
        received.append(message)
        return {"answer": 2}

    result = run_child(_call("ask", answer=answer), ChildGroup())
    assert received == [{"question": 1}]
    assert result == {"result": {"answer": 2}}


def test_printed_lines_are_no_messages() -> None:
    """What a library prints is not read as a message."""
    assert run_child(_call("print_messages"), ChildGroup()) == {"result": "mine"}


def test_a_child_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that reads untrusted files has no tokens and keys in its environment."""
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_HOME", "kept")
    environment = run_child(_call("send_environment"), ChildGroup())["result"]
    assert "secret" not in environment.values()
    assert environment["HF_HOME"] == "kept"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    # Although its name contains TOKEN. Without it a tokenizer starts a thread for each core.
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_a_child_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that starts in a model's folder runs no code from there."""
    (tmp_path / "json.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    path = run_child(_call("send_path"), ChildGroup())["result"]
    assert "" not in path
    assert str(tmp_path) not in path


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("crash", "was ended by signal SIGSEGV"),
        ("exit", "exit code 3"),
        ("send_too_much", "unreadable message"),
        ("send_no_json", "exit code 0"),
        ("no such job", "exit code 1"),
    ],
)
def test_a_failing_child_is_an_error(name: str, problem: str) -> None:
    """The error says how the child ended."""
    with pytest.raises(ChildError, match=problem):
        run_child(_call(name), ChildGroup())


def test_a_hanging_child_is_killed() -> None:
    """A child that exceeds its time limit is killed, and no process is left."""
    messages: list[Any] = []
    with pytest.raises(ChildError, match="took longer than 1 s") as caught:
        run_child(_call("hang", timeout_s=1, answer=messages.append), ChildGroup())
    assert caught.value.timed_out
    assert not any(_exists(message["pid"]) for message in messages)


def test_the_time_of_an_answer_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a download is not limited."""
    passed_s = 0.0
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + passed_s)

    def answer(_: Any) -> Mapping[str, Any]:
        nonlocal passed_s
        passed_s = 10 * _PATIENCE_S
        return {}

    run_child(_call("wait_for_answer", answer=answer), ChildGroup())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_memory_is_limited() -> None:
    """A child that exceeds its memory limit gets an error."""
    assert run_child(_call("fill_memory"), ChildGroup()) == {"result": "out of memory"}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_kernel_kills_a_child_first() -> None:
    """If a container runs out of memory, the child is killed and not the server."""
    assert run_child(_call("send_oom_score"), ChildGroup()) == {"result": "1000"}


def test_ending_a_group_kills_its_children() -> None:
    """A running child is killed at once."""
    children, pids = ChildGroup(), []

    def answer(message: Mapping[str, Any]) -> None:
        pids.append(message["pid"])
        threading.Thread(target=children.end).start()

    with pytest.raises(ChildError, match="SIGKILL"):
        run_child(_call("hang", answer=answer), children)
    assert not _exists(pids[0])


def test_an_ended_group_kills_new_children() -> None:
    """A child that starts after the end of its group is killed."""
    children = ChildGroup()
    children.end()
    with pytest.raises(ChildError):
        run_child(_call("hang"), children)


_STARTER = """
import sys
sys.path.append(sys.argv[1])
from embedgrpc.models.validation.child_process import ChildGroup, ChildCall, run_child
def answer(message):
    print(message["pid"], flush=True)
run_child(ChildCall("tests.models.validation.child_jobs", "hang", 600, answer), ChildGroup())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_child_ends_with_its_parent() -> None:
    """A server that is killed leaves no child."""
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(Path(__file__).parents[3])], stdout=subprocess.PIPE
    )
    try:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert _exists(pid)
    finally:
        starter.kill()
        starter.communicate()
    _wait_for_end(pid)


def _wait_for_end(pid: int) -> None:
    """Wait until another process's child is gone, or is a zombie."""
    end = threading.Event()
    for _ in range(int(_PATIENCE_S / 0.01)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        end.wait(0.01)
    raise AssertionError("the process still runs")
