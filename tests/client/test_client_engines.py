import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest

from embedgrpc.client import ConnectionFailedError, InvalidRequestError, ModelChangedError
from embedgrpc.client.engines import EmbedBatch
from embedgrpc.v1 import common_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.made_up import DIMENSIONS, vector_of
from tests.client.servicer import Refusal, Script, info, serving

TEXTS = ["a tower", "fail:INPUT_TOO_LONG", "Größe", None, "a river"]
FAILED = "INPUT_TOO_LONG: as asked"
NULL = "EMPTY_INPUT: the text is null"
ERRORS = [None, FAILED, None, NULL, None]


def table(texts: list[Any] = TEXTS) -> pa.Table:
    """Make a table with ids and texts."""
    ids = pa.array(range(len(texts)), pa.int64())
    return pa.table({"id": ids, "text": pa.array(texts, pa.string())})


def check(vectors: list[Any], errors: list[Any]) -> None:
    """Check that each row of `TEXTS` has the vector of its text, or its error."""
    assert errors == ERRORS
    for text, vector, error in zip(TEXTS, vectors, ERRORS, strict=True):
        if error is None:
            assert np.array_equal(vector, vector_of(str(text)))
        else:
            assert vector is None


@pytest.fixture
def embed(target: str) -> Iterator[EmbedBatch]:
    """An object with its defaults."""
    made = EmbedBatch(target)
    yield made
    made.close()


@pytest.mark.parametrize("make", [table, lambda: table().to_batches()[0]], ids=["table", "batch"])
def test_arrow_gets_lists_of_fixed_size(make: Any, embed: EmbedBatch) -> None:
    """Tables and record batches keep their type and columns; a row that fails has a null."""
    batch = make()
    made = embed(batch)
    assert type(made) is type(batch)
    assert made.schema.names == ["id", "text", "embedding", "error"]
    assert made.schema.field("embedding").type == pa.list_(pa.float32(), DIMENSIONS)
    assert made.schema.field("error").type == pa.string()
    assert made["id"] == batch["id"]
    check(made["embedding"].to_pylist(), made["error"].to_pylist())
    assert batch.schema.names == ["id", "text"]


def test_a_dict_of_lists_gets_lists(embed: EmbedBatch) -> None:
    """A vector is an array, or None where its row failed."""
    batch = {"id": [0, 1, 2, 3, 4], "text": TEXTS}
    made = embed(batch)
    assert list(made) == ["id", "text", "embedding", "error"]
    assert isinstance(made["embedding"], list)
    check(made["embedding"], made["error"])
    assert list(batch) == ["id", "text"]


def test_a_dict_of_arrays_gets_one_array(embed: EmbedBatch) -> None:
    """Rows that failed are NaN there, since an array has no null."""
    made = embed({"id": np.arange(5), "text": np.array(TEXTS, object)})
    assert made["embedding"].shape == (5, DIMENSIONS)
    assert made["embedding"].dtype == np.float32
    assert np.isnan(made["embedding"]).all(axis=1).tolist() == [bool(one) for one in ERRORS]
    rows = [None if error else row for row, error in zip(made["embedding"], ERRORS, strict=True)]
    check(rows, made["error"].tolist())


@pytest.mark.parametrize("encoding", ["float16", "bfloat16", "int8", "ubinary"])
def test_encodings_have_types_of_their_own(encoding: Any, target: str) -> None:
    """int8 has a scale, ubinary is bytes, and the shorter floats arrive as float32."""
    made = EmbedBatch(target, encoding=encoding)(table())
    assert made["error"].to_pylist() == ERRORS
    expected = vector_of("a tower")
    first = made["embedding"][0].as_py()
    assert made["embedding"][1].as_py() is None
    if encoding == "ubinary":
        assert made.schema.field("embedding").type == pa.binary(2)
        assert first == np.packbits(expected > 0).tobytes()
    elif encoding == "int8":
        assert made.schema.names[2:] == ["embedding", "scale", "error"]
        assert made.schema.field("embedding").type == pa.list_(pa.int8(), DIMENSIONS)
        assert made["scale"].to_pylist() == [0.5, None, 0.5, None, 0.5]
    else:
        assert made.schema.field("embedding").type == pa.list_(pa.float32(), DIMENSIONS)
        assert np.array_equal(first, expected)


def test_other_dicts_have_the_encodings_too(target: str) -> None:
    """int8 has its scales, and what failed is 0 where there is no NaN."""
    embed = EmbedBatch(target, encoding="int8")
    rows = embed({"text": TEXTS})
    assert rows["embedding"][1] is None
    assert rows["scale"] == [0.5, None, 0.5, None, 0.5]
    arrays = embed({"text": np.array(TEXTS, object)})
    assert arrays["embedding"].dtype == np.int8
    assert not arrays["embedding"][1].any()


def test_what_is_no_text_fails_alone(embed: EmbedBatch) -> None:
    """NaN is null, as in pandas; other types and lone surrogates have a reason, too."""
    made = embed({"text": ["a", float("nan"), 7, b"x", "\ud800"]})
    assert made["error"] == [
        None,
        NULL,
        "INVALID_REQUEST: the text is of type int",
        "INVALID_REQUEST: the text is of type bytes",
        "INVALID_REQUEST: the text has a lone surrogate at character 0",
    ]
    assert [one is None for one in made["embedding"]] == [False, True, True, True, True]


def test_batches_without_rows_or_texts_keep_their_types(embed: EmbedBatch, script: Script) -> None:
    """A dict of no rows needs no server; a table asks it once for the dimensions."""
    assert embed({"text": []}) == {"text": [], "embedding": [], "error": []}
    assert not script.calls
    schemas = {embed(table([])).schema for _ in range(2)} | {embed(table([None, None])).schema}
    assert schemas == {embed(table()).schema}
    assert len(script.calls) == 2
    assert embed.arrow_schema(table().schema) in schemas


def test_spark_gets_lists_without_a_size(target: str) -> None:
    """`map_arrow` goes through batches one by one; its schema is known before."""
    for encoding, kind in (
        ("float32", pa.list_(pa.float32())),
        ("int8", pa.list_(pa.int8())),
        ("ubinary", pa.binary()),
    ):
        embed = EmbedBatch(target, encoding=encoding, text_column="id")  # type: ignore[arg-type] # a Literal
        ids = pa.table({"id": TEXTS, "text": TEXTS})
        batches = list(embed.map_arrow(iter(ids.to_batches(max_chunksize=2))))
        assert [batch.num_rows for batch in batches] == [2, 2, 1]
        due = embed.arrow_schema(ids.schema, fixed_size=False)
        assert {batch.schema for batch in batches} == {due}
        assert due.field("embedding").type == kind
        errors = [error for batch in batches for error in batch["error"].to_pylist()]
        assert errors == ERRORS


def test_texts_are_sent_as_bulk(target: str, script: Script) -> None:
    """Unless another priority is set; the other options reach the server."""
    EmbedBatch(target, model="alias", input_type="document", dimensions=4)(table())
    (setup,) = script.calls
    assert setup.options.priority == common_pb2.PRIORITY_BULK
    assert setup.options.representations == [pb.REPRESENTATION_DENSE]
    assert (setup.model, setup.options.dimensions) == ("alias", 4)
    assert setup.options.input_type == common_pb2.INPUT_TYPE_DOCUMENT
    EmbedBatch(target, priority="interactive")(table())
    assert script.calls[-1].options.priority == common_pb2.PRIORITY_INTERACTIVE


def test_columns_may_have_other_names(target: str) -> None:
    """Those of the batch are refused, with the way out."""
    embed = EmbedBatch(target, text_column="id", embedding_column="vector", error_column="reason")
    made = embed(pa.table({"id": ["a"], "embedding": [1]}))
    assert made.schema.names == ["id", "embedding", "vector", "reason"]
    with pytest.raises(ValueError, match="has a column 'vector' already"):
        embed(made)
    with pytest.raises(ValueError, match="must differ"):
        EmbedBatch(target, text_column="error")


def test_a_wrong_batch_is_told(embed: EmbedBatch) -> None:
    """A missing column with those that there are, and an unknown type by its name."""
    with pytest.raises(ValueError, match=r"no column 'text'.*its columns: 'id', 'texts'"):
        embed(pa.table({"id": [1], "texts": ["a"]}))
    with pytest.raises(TypeError, match=r"not builtins\.list"):
        embed(["a text"])
    with pytest.raises(TypeError, match="the column 'text' is one str"):
        embed({"text": "a text"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimension": 4}, "dimensions"),
        ({"representations": ["sparse"]}, "dense"),
        ({"client_settings": {"ca_fil": "x"}}, "ca_file"),
        ({"encoding": "int9"}, "int8"),
        ({"api_key": "eg_x", "target": "example.org:443"}, "plain text"),
        ({"target": "http://localhost"}, "http"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "8"}, "batch_size is not a number but of type str"),
        ({"patience_s": None}, "patience_s is not a number but of type NoneType"),
        ({"client_settings": {"target": "a:1"}}, "'target', which is an argument of its own"),
    ],
)
def test_wrong_settings_are_told_at_once(settings: dict[str, Any], message: str) -> None:
    """Before anything is sent to a worker."""
    with pytest.raises((TypeError, ValueError), match=message):
        EmbedBatch(**settings)


def test_what_the_server_refuses_ends_the_batch(target: str) -> None:
    """An option that no row could be embedded with is no error of a row."""
    with pytest.raises(Exception, match="no such model"):
        EmbedBatch(target, model="absent")(table())


def test_keys_come_from_the_worker(
    target: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of the process that connects has them; a parameter goes first."""
    embed = EmbedBatch(target)
    monkeypatch.setenv("EMBEDGRPC_API_KEY", "eg_of_worker")
    embed(table())
    assert ("x-api-key", "eg_of_worker") in script.metadata
    keyed = EmbedBatch(target, api_key="eg_given", model="m")
    assert repr(keyed) == f"EmbedBatch({target!r}, text_column='text', model='m')"
    pickle.loads(pickle.dumps(keyed))(table())  # noqa: S301 -- our own
    assert ("x-api-key", "eg_given") in script.metadata
    monkeypatch.delenv("EMBEDGRPC_API_KEY")
    monkeypatch.setenv("EMBEDGRPC_TOKEN", "a.b.c")
    EmbedBatch(target)(table())
    assert ("authorization", "Bearer a.b.c") in script.metadata


def test_it_is_pickled_after_it_was_used(embed: EmbedBatch) -> None:
    """The copy has the settings, and a connection of its own."""
    embed(table())
    copy = pickle.loads(pickle.dumps(embed))  # noqa: S301 -- our own
    embed.close()
    check(copy(table())["embedding"].to_pylist(), ERRORS)
    check(embed(table())["embedding"].to_pylist(), ERRORS)


_FORKING = """
import os, sys
import pyarrow as pa
from embedgrpc.client.engines import EmbedBatch
embed = EmbedBatch(sys.argv[1])
table = pa.table({"text": ["a tower"]})
before = embed(table)
child = os.fork()
same = embed(table) == before
if child == 0:
    embed.close()
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), same, embed(table) == before)
"""


def test_a_process_may_fork_after_a_batch(target: str) -> None:
    """The child connects by itself, and leaves the connection of the parent alone."""
    done = subprocess.run(
        [sys.executable, "-c", _FORKING, target],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "EMBEDGRPC_API_KEY"},
    )
    assert done.stdout.split() == ["0", "True", "True"]


def test_threads_may_share_it(embed: EmbedBatch) -> None:
    """Each gets the vectors of its own texts."""
    made: dict[int, Any] = {}

    def run(number: int) -> None:
        made[number] = embed({"text": [f"{number}: {row}" for row in range(50)]})["embedding"]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, vectors in made.items():
        for row, vector in enumerate(vectors):
            assert np.array_equal(vector, vector_of(f"{number}: {row}"))
    assert len(made) == 4


def test_broken_streams_lose_nothing(embed: EmbedBatch, script: Script) -> None:
    """What has no result is sent again; each row has its vector once."""
    for after in (3, 20, 41):
        script.breaks.append((after, Refusal(grpc.StatusCode.UNAVAILABLE, "gone")))
    made = embed({"text": [f"text {row}" for row in range(60)]})
    assert not script.breaks
    assert not any(made["error"])
    for row, vector in enumerate(made["embedding"]):
        assert np.array_equal(vector, vector_of(f"text {row}"))


def test_a_server_that_is_away_is_waited_for() -> None:
    """Also before the first batch; the log tells of it."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    told = threading.Event()

    class Handler(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            told.set()

    handler = Handler()
    logger = logging.getLogger("embedgrpc.client.engines")
    logger.addHandler(handler)
    made: list[Any] = []
    embed = EmbedBatch(target, patience_s=60)
    waiting = threading.Thread(target=lambda: made.append(embed(table())))
    try:
        waiting.start()
        assert told.wait(60)
        with ExitStack() as stack:
            stack.enter_context(serving(target))
            waiting.join(60)
            embed.close()
    finally:
        logger.removeHandler(handler)
    check(made[0]["embedding"].to_pylist(), made[0]["error"].to_pylist())


def test_patience_ends() -> None:
    """A server that stays away fails the batch, for the engine to try again."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ConnectionFailedError):
        EmbedBatch(target, patience_s=0.2)(table())


def test_texts_that_fail_for_now_are_sent_again(target: str, script: Script) -> None:
    """Until the patience ends; then the row has the reason, and the others their vectors."""
    made = EmbedBatch(target, patience_s=0.3)({"text": ["a", "fail:OVERLOADED", "b"]})
    assert made["error"] == [None, "OVERLOADED: as asked", None]
    assert np.array_equal(made["embedding"][2], vector_of("b"))
    sent = [item.text for one in script.messages for item in one.batch.inputs]
    assert sent.count("fail:OVERLOADED") > sent.count("a") == 1


def test_vectors_of_two_models_do_not_mix(target: str, script: Script) -> None:
    """Neither in one process, nor with the fingerprint that is due."""
    script.fingerprints = ["f1", "f2"]
    embed = EmbedBatch(target)
    embed(table())
    with pytest.raises(ModelChangedError, match="f2, but f1 is due"):
        embed(table())
    EmbedBatch(target, fingerprint="f2")(table())
    with pytest.raises(ModelChangedError, match="f1 is due"):
        EmbedBatch(target, fingerprint="f1")(table())


def test_an_invalid_request_is_raised(target: str, script: Script) -> None:
    """It would fail with every batch."""
    details = (info("INVALID_REQUEST"),)
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad dimensions", details)
    script.breaks.append((0, refusal))
    with pytest.raises(InvalidRequestError, match="bad dimensions"):
        EmbedBatch(target)(table())


def test_the_page_shows_what_happens(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its snippet runs as it is, but for the address."""
    page = Path(__file__).parents[2] / "docs" / "engines.md"
    (snippet,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert "127.0.0.1:50051" in snippet
    exec(snippet.replace("127.0.0.1:50051", target), {})  # noqa: S102 -- our own page
    assert capsys.readouterr().out.startswith("['id', 'text', 'embedding', 'error'] [None, 'EMPTY")
