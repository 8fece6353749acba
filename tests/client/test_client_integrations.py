"""What the integrations with frameworks stand on; `tests/integrations` runs the frameworks."""

import asyncio
import copy
import functools
import itertools
import os
import pickle
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedgrpc.client import EncodeError, InputTooLongError
from embedgrpc.client.integrations import connection as module
from embedgrpc.client.integrations import keys
from embedgrpc.client.integrations.connection import Connection, connection_to
from embedgrpc.client.integrations.embedder import Embedder
from embedgrpc.client.integrations.ranker import Ranker
from embedgrpc.v1 import common_pb2
from tests.client.made_up import vector_of
from tests.client.servicer import Script

_TEXTS = [f"text {number}" for number in range(50)]
_ROOM = Path(keys.__file__).parent
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keys.API_KEY_VARIABLE, raising=False)


def test_the_client_imports_no_integration() -> None:
    """Who does without frameworks loads nothing of theirs."""
    code = "import sys, embedgrpc.client.public; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert b"embedgrpc.client.client" in loaded
    assert b"integrations" not in loaded


def test_each_framework_has_an_extra_without_upper_bounds() -> None:
    """The extra has the name of the module that needs it."""
    base = {"__init__", "connection", "embedder", "keys", "pair_scores", "plain_embedder", "ranker"}
    # These stand in for objects of sentence-transformers, without it.
    base |= {"sentence_transformers", "written_settings"}
    modules = {path.stem for path in _ROOM.glob("*.py")} - base
    text = (ROOT / "clients/python/pyproject.toml").read_text("utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert {name.replace("-", "_") for name in extras} - {"bulk"} == modules
    assert not re.search("[<~]|==", " ".join(itertools.chain(*extras.values())))


def test_queries_and_documents_have_prompts_of_their_own(target: str, script: Script) -> None:
    """One text is one call, many are a stream; options for queries change those alone."""
    embedder = Embedder(Connection(target), query_options={"prompt_text": "Find: "})
    np.testing.assert_array_equal(embedder.embed_query("one"), vector_of("one"))
    assert script.calls[-1].options.prompt_text == "Find: "
    expected = [vector_of(text) for text in _TEXTS]
    np.testing.assert_array_equal(embedder.embed_documents(_TEXTS), expected)
    np.testing.assert_array_equal(embedder.embed_document("one"), vector_of("one"))
    assert script.calls[-1].options.input_type == common_pb2.INPUT_TYPE_DOCUMENT
    Embedder(Connection(target)).embed_query("one")
    assert script.calls[-1].options.input_type == common_pb2.INPUT_TYPE_QUERY


def test_each_event_loop_has_a_client(target: str) -> None:
    """Those of loops that have ended are dropped; others may be closed."""
    connection = Connection(target)
    embedder = Embedder(connection)

    async def embed() -> Any:
        try:
            return await embedder.embed_documents_async(_TEXTS)
        finally:
            assert len(connection._async_clients) == 1

    async def embed_and_close() -> Any:
        vectors = await embed()
        await connection.close_async()
        assert not connection._async_clients
        return vectors

    expected = [vector_of(text) for text in _TEXTS]
    for run in (embed, embed, embed_and_close):
        np.testing.assert_array_equal(asyncio.run(run()), expected)


def test_threads_share_a_client(target: str) -> None:
    """Also the one that is made when several of them call at once."""
    connection = Connection(target)
    barrier = threading.Barrier(4)
    found: list[object] = []

    def ask() -> None:
        barrier.wait()
        found.append(connection.client())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    connection.close()
    assert connection.client() is not found[0]


def test_copies_have_the_settings_and_their_own_clients(target: str) -> None:
    """A pickle, and copies of both kinds, of an embedder that was used."""
    connection = Connection(target, api_key="eg_secret", timeout_s=7)
    embedder = Embedder(connection, model="m", options={"dimensions": 4})
    ranker = Ranker(connection, model="m", options={"max_tokens": 4})
    client = connection.client()
    pickled = pickle.loads(pickle.dumps(embedder))  # noqa: S301 -- from this test
    for made in (pickled, copy.copy(embedder), copy.deepcopy(embedder)):
        assert made == embedder
        assert hash(made) == hash(embedder)
    assert pickled.connection.client() is not client
    assert copy.deepcopy(ranker) == ranker
    assert Embedder(Connection(target)) != embedder
    for made in (connection, embedder, ranker):
        assert "eg_secret" not in repr(made)


def test_a_key_comes_from_where_it_is_kept(
    target: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument, a function, or the environment; a function is called when a client is made."""
    for key, expected in (("eg_1", "eg_1"), (lambda: "eg_2", "eg_2"), (lambda: None, None)):
        Connection(target, api_key=key).client().embed(["a"])
        assert dict(script.metadata).get("x-api-key") == expected
        script.metadata.clear()
    monkeypatch.setenv(keys.API_KEY_VARIABLE, "eg_3")
    monkeypatch.setenv("MY_KEY", "eg_4")
    mine = functools.partial(keys.key_from_environment, "MY_KEY")
    for kept, expected in ((None, "eg_3"), (mine, "eg_4")):
        Connection(target, api_key=kept).client().embed(["a"])
        assert dict(script.metadata)["x-api-key"] == expected
        script.metadata.clear()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Connection("http://here:1"), "URL"),
        (lambda: Connection(timeout=1), "timeout_s"),
        (lambda: Connection(token="eyJ"), "give a function"),  # noqa: S106 -- no token
        (lambda: Embedder(Connection(), options={"dimension": 1}), "dimensions"),
        (lambda: Embedder(Connection(), options={"encoding": "int8"}), "float32, float16"),
        (lambda: Embedder(Connection(), options={"token_vectors": True}), "token_vectors"),
        (lambda: Ranker(Connection(), options={"top_n": 1}), "top_n"),
        (lambda: Ranker(Connection(), options={"topk": 1}), "topk"),
        (
            lambda: Embedder(Connection(), options={"model": "m"}),
            "^model is an argument of its own",
        ),
        (lambda: connection_to("here:1", {"target": "there:1"}), "'target', which is an argument"),
        (lambda: connection_to("here:1", {"api_key": "eg_1"}), "'api_key', which is an argument"),
        (lambda: connection_to("here:1", [1]), "not a dict but of type list"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_told_at_once(make: Any, message: str) -> None:
    """And not at the first call, far from where they stand."""
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *((f"embed_{kind}", "one") for kind in ("documents", "queries")),
        *((f"sparse_{kind}", "one") for kind in ("documents", "queries")),
        *((f"embed_{kind}_async", "one") for kind in ("documents", "queries")),
        ("sparse_documents_async", "one"),
        *((f"embed_{kind}", ["one"]) for kind in ("document", "query")),
        *((f"embed_{kind}_async", ["one"]) for kind in ("document", "query")),
        *((name, ["one"]) for name in ("sparse_query", "sparse_query_async")),
    ],
)
def test_one_text_is_not_taken_for_several(target: str, name: str, given: Any) -> None:
    """Nor the other way round: the vectors would have another shape than is due."""
    embedder = Embedder(Connection(target), is_sparse=name.startswith("sparse"))

    async def call() -> None:
        await getattr(embedder, name)(given)

    message = "texts is one str" if given == "one" else "text is not a str but of type list"
    with pytest.raises(TypeError, match=message):
        asyncio.run(call())


def test_errors_keep_their_reasons(target: str) -> None:
    """Of dense vectors, sparse ones and rankings."""
    connection = Connection(target)
    bad = ["fine", "fail:INPUT_TOO_LONG"]
    with pytest.raises(EncodeError) as raised:
        Embedder(connection).embed_documents(bad)
    assert raised.value.reason == "INPUT_TOO_LONG"
    with pytest.raises(InputTooLongError, match=re.escape("texts[1]")):
        Embedder(connection, is_sparse=True).sparse_documents(bad)
    with pytest.raises(InputTooLongError):
        Ranker(connection).rank("fail:INPUT_TOO_LONG", bad)


def test_a_loop_in_a_forked_process_fails_instead_of_waiting(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRPC's threads for loops are not in the child of a process that has them."""
    monkeypatch.setattr(module, "_loop_processes", {os.getpid() + 1})

    async def ask() -> None:
        Connection(target).async_client()

    with pytest.raises(RuntimeError, match="fork before them"):
        asyncio.run(ask())
