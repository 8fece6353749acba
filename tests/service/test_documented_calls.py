"""Each call with grpcurl that a page shows answers what stands below it."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.conftest import running_server
from tests.service.grpcurl import Grpcurl

ROOT = Path(__file__).parent.parent.parent
DOCUMENTED_TARGET = "127.0.0.1:50051"
# They differ by machine, by run, or whenever graphs are built in another way.
_VARIABLE = {
    *("batch_tokens", "device", "fingerprint", "start_time", "uptime", "version"),
    *("total_time_ns", "tokenization_time_ns", "queue_time_ns", "inference_time_ns"),
}
_CALL = re.compile(
    r"^```sh\n(?P<command>grpcurl .*?)^```\n\n```(?P<language>\w+)\n(?P<output>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@pytest.fixture(scope="module")
def doors_target(cache_dir: Path) -> Iterator[str]:
    """The address of a server that speaks other protocols too."""
    flags = ("--tei-model", "all-MiniLM-L6-v2", "--kserve")
    with running_server(*flags, cache_dir=cache_dir) as address:
        yield address


def documented_calls() -> list[Any]:
    """Return the page, the command, the language and the output of every call."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        pytest.param(*call.groups(), id=f"{page.stem}-{number}")
        for page in pages
        for number, call in enumerate(_CALL.finditer(page.read_text("utf-8")))
    ]


def comparable(value: Any, *, is_shown: bool) -> Any:
    """Return a JSON value without what may differ, and with approximate numbers if it is shown."""
    if isinstance(value, dict):
        return {
            key: "" if key in _VARIABLE else comparable(one, is_shown=is_shown)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [comparable(one, is_shown=is_shown) for one in value]
    return pytest.approx(value, abs=1e-5) if is_shown and isinstance(value, float) else value


@pytest.mark.parametrize(("command", "language", "output"), documented_calls())
def test_a_call_answers_what_stands_below_it(
    command: str, language: str, output: str, request: pytest.FixtureRequest, grpcurl: Grpcurl
) -> None:
    """The command runs as it is, and prints what the page shows but for the last digits."""
    if "ClassifyService" in command:
        # The server with its defaults has no classifier.
        grpcurl = Grpcurl(grpcurl.program, request.getfixturevalue("fixture_target"))
    if "tei.v1" in command or "inference." in command:
        grpcurl = Grpcurl(grpcurl.program, request.getfixturevalue("doors_target"))
    program, plaintext, *words = shlex.split(command.replace("\\\n", " "))
    assert (program, plaintext) == ("grpcurl", "-plaintext")
    place = words.index(DOCUMENTED_TARGET)
    done = grpcurl.run(*words[place + 1 :], flags=words[:place])
    if language == "json":
        answer, shown = json.loads(done.stdout), json.loads(output)
        assert comparable(answer, is_shown=False) == comparable(shown, is_shown=True)
    else:
        assert (done.stdout + done.stderr).split() == output.split()


def test_the_example_with_tritonclient_prints_what_stands_below_it(doors_target: str) -> None:
    """It runs as it is, but for the address."""
    page = (ROOT / "docs/kserve.md").read_text("utf-8")
    found = re.search(
        r"^<!-- runnable: python -->\n```python\n(.*?)^```\n\n```text\n(.*?)^```$",
        page,
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None
    program = found[1].replace(DOCUMENTED_TARGET, doors_target)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == found[2]


def test_every_call_has_an_output() -> None:
    """No page shows a call alone, and there is one of each method that answers with one message."""
    calls = documented_calls()
    methods = {call.values[0].split()[-1].rpartition("/")[2] for call in calls}
    assert {
        *("Embed", "Rerank", "Classify", "Tokenize", "CountTokens", "GetServer", "ListModels")
    } <= methods
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    # Those with certificates are run where a server has one.
    assert len(re.findall(r"^grpcurl (?!-cacert)", text, re.MULTILINE)) == len(calls)
