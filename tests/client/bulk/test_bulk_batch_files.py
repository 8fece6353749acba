import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.bulk.conftest import Bulk
from tests.client.made_up import vector_of
from tests.client.servicer import Script


def request(custom_id: str, texts: Any, **body: Any) -> dict[str, Any]:
    """Make a line of a batch file."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "m", "input": texts, **body},
    }


def write_requests(path: Path, *requests: dict[str, Any]) -> Path:
    """Write a batch file."""
    path.write_text("".join(f"{json.dumps(one)}\n" for one in requests))
    return path


FLAGS = ("--input-format", "openai-batch", "--unit-rows", 4)


def test_batch_files_are_answered(bulk: Bulk, script: Script, tmp_path: Path) -> None:
    """Each request has its answer in one line: all its vectors, or the error of a text."""
    requests = [
        request("one", "a tower", dimensions=8),
        request("several", ["a", "b", "c", "d", "e", "f"], dimensions=8),
        request("coded", ["long river"], encoding_format="base64", dimensions=8, user="u"),
        request("failing", ["a", "fail:INPUT_TOO_LONG"], dimensions=8),
        request("broken", ["fail:BACKEND_FAILED"], dimensions=8),
    ]
    source = write_requests(tmp_path / "in.jsonl", *requests)
    bulk(source, "--output", tmp_path / "out.jsonl", *FLAGS, status=1)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [one["custom_id"] for one in requests]
    assert len({line["id"] for line in lines}) == 5
    assert {line["error"] for line in lines} == {None}
    bodies = [line["response"]["body"] for line in lines]
    assert [line["response"]["status_code"] for line in lines] == [200, 200, 200, 400, 500]
    assert bodies[0]["object"] == "list"
    assert bodies[0]["model"] == "model-0"
    assert bodies[0]["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [item["index"] for item in bodies[1]["data"]] == list(range(6))
    assert np.array_equal(bodies[1]["data"][5]["embedding"], vector_of("f", 8))
    coded = np.frombuffer(base64.b64decode(bodies[2]["data"][0]["embedding"]), "<f4")
    assert np.array_equal(coded, vector_of("long river", 8))
    assert bodies[3]["error"]["code"] == "input_too_long"
    assert bodies[3]["error"]["param"] == "input"
    assert bodies[4]["error"]["type"] == "server_error"
    assert script.calls[-1].model == "m"


@pytest.mark.parametrize(
    ("second", "due"),
    [
        (request("b", "secret") | {"url": "/v1/chat"}, "line 2 is no POST to /v1/embeddings"),
        (request("b", [1, 2]), "line 2 has an 'input' that is neither"),
        (request("b", "secret", prompt="x"), "line 2 has the field 'prompt' in the body"),
        (request("b", "secret", encoding_format="hex"), "neither float nor base64"),
        (request("b", "secret", model="n"), "the requests name 2 models: choose one with --model"),
        (request("b", "secret", dimensions=4), "several dimensions: choose with --dimensions"),
        ({"custom_id": "b"}, "line 2 is no POST"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    second: dict[str, Any], due: str, bulk: Bulk, tmp_path: Path
) -> None:
    """Before any text is sent, with the line and without the text."""
    source = write_requests(tmp_path / "in.jsonl", request("a", "secret"), second)
    errors = bulk(source, "--output", tmp_path / "out.jsonl", *FLAGS, status=2)
    assert due in errors
    assert "secret" not in errors


@pytest.mark.parametrize(
    "flags", [("--keep", "all"), ("--output-format", "npy"), ("--encoding", "int8")]
)
def test_options_of_other_formats_are_refused(
    flags: tuple[str, str], bulk: Bulk, tmp_path: Path
) -> None:
    """A batch file has its own columns and floats."""
    source = write_requests(tmp_path / "in.jsonl", request("a", "a"))
    assert "openai-batch" in bulk(source, "--output", tmp_path / "o", *FLAGS, *flags, status=2)
