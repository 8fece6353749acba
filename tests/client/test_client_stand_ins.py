"""What stands where a SentenceTransformer or a CrossEncoder did, and what is written down of it."""

import pickle
from typing import Any

import numpy as np
import pytest

from embedgrpc.client import BadResponseError, Client
from embedgrpc.client.integrations.connection import Connection
from embedgrpc.client.integrations.keys import API_KEY_VARIABLE
from embedgrpc.client.integrations.pair_scores import score_pairs
from embedgrpc.client.integrations.plain_embedder import PlainEmbedder
from embedgrpc.client.integrations.sentence_transformers import (
    EmbedGrpcCrossEncoder,
    EmbedGrpcSentenceTransformer,
)
from embedgrpc.client.integrations.written_settings import connect, require_json
from embedgrpc.v1 import common_pb2
from embedgrpc.v1 import embedding_service_pb2 as pb
from tests.client.made_up import DIMENSIONS, vector_of
from tests.client.servicer import Script


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        ("encode", {}, {}),
        ("encode", {"prompt_name": "query"}, {"prompt_name": "query"}),
        ("encode", {"prompt_name": "query", "prompt": ""}, {"prompt_text": ""}),
        ("encode_query", {}, {"input_type": common_pb2.INPUT_TYPE_QUERY}),
        ("encode_document", {}, {"input_type": common_pb2.INPUT_TYPE_DOCUMENT}),
        ("encode_query", {"prompt": "find: "}, {"prompt_text": "find: "}),
        ("encode", {"truncate_dim": 8}, {}),
        (
            "encode",
            {"truncate_dim": 8, "normalize_embeddings": True},
            {"dimensions": 8, "normalize": True},
        ),
        ("encode", {"normalize_embeddings": True}, {"normalize": True}),
        ("encode", {"normalize_embeddings": False, "batch_size": 1, "device": "cpu"}, {}),
        ("encode", {"precision": "binary"}, {"encoding": pb.VECTOR_ENCODING_UBINARY}),
    ],
)
def test_arguments_become_options(
    method: str, arguments: dict[str, Any], expected: dict[str, Any], target: str, script: Script
) -> None:
    """Those that the server decides have no effect."""
    model = EmbedGrpcSentenceTransformer(target)
    getattr(model, method)("a text", **arguments)
    wanted = pb.EmbedOptions(**{"encoding": pb.VECTOR_ENCODING_FLOAT32, **expected})
    assert script.calls[-1].options == wanted


def test_vectors_are_arrays_by_default(target: str) -> None:
    """One text has one vector; the object's own length is that of all vectors."""
    model = EmbedGrpcSentenceTransformer(target, truncate_dim=8)
    assert np.array_equal(model.encode("a text"), vector_of("a text")[:8])
    assert np.array_equal(model.encode(["a", "b"]), [vector_of("a")[:8], vector_of("b")[:8]])
    assert model.get_sentence_embedding_dimension() == 8
    assert EmbedGrpcSentenceTransformer(target).get_embedding_dimension() == DIMENSIONS


def test_texts_may_be_cut_sooner(target: str, script: Script) -> None:
    """By the attribute that a SentenceTransformer has; a pickle keeps it."""
    model = EmbedGrpcSentenceTransformer(target)
    model.max_seq_length = 64
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 -- from this test
    again.encode("a text")
    assert script.calls[-1].options.max_tokens == again.max_seq_length == 64


def test_the_model_describes_itself(target: str) -> None:
    """As the server does."""
    model = EmbedGrpcSentenceTransformer(target, "one")
    assert (model.max_seq_length, model.prompts) == (512, {"query": "query: "})
    assert model.default_prompt_name is None
    left, right = model.encode(["a", "b"]), model.encode(["a", "c"])
    similarities = model.similarity(left, right)
    assert similarities.shape == (2, 2)
    assert np.array_equal(model.similarity_pairwise(left, right), np.diag(similarities))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precision": "int8"}, ValueError, "precision is 'int8'"),
        ({"output_value": None}, ValueError, "output_value"),
        ({"normalise": True}, TypeError, "no option 'normalise'"),
    ],
)
def test_what_no_server_has_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, target: str
) -> None:
    """Before a call."""
    with pytest.raises(error, match=message):
        EmbedGrpcSentenceTransformer(target).encode("a text", **arguments)


def test_pairs_are_scored_in_their_order(target: str) -> None:
    """The documents of a query travel together."""
    pairs = [("abc", "a"), ("xyz", "xy"), ("abc", "abc"), ("xyz", "c"), ("abc", "bc")]
    model = EmbedGrpcCrossEncoder(target)
    assert model.predict(pairs).tolist() == [1, 2, 3, 0, 2]
    assert model.predict(pairs[2]) == 3
    assert len(model.predict([])) == 0
    assert model.rank("abc", ["x", "ab"], 1, return_documents=True) == [
        {"corpus_id": 1, "score": 2.0, "text": "ab"}
    ]
    with Client(target) as client, pytest.raises(BadResponseError, match="no score"):
        score_pairs(client, [("abc", "fail:INPUT_TOO_LONG"), ("abc", "a")])


def test_the_identity_names_model_and_options(target: str) -> None:
    """So that vectors of another model are never taken for those of this one."""
    identities = {
        PlainEmbedder(Connection(target), options=options).identity()
        for options in ({}, {"dimensions": 8}, {"input_type": "query"}, {"input_type": None})
    }
    assert len(identities) == 3


@pytest.mark.parametrize("name", ["api_key", "token", "credentials", "metadata"])
def test_secrets_are_not_written_down(name: str, target: str) -> None:
    """They come from the environment."""
    with pytest.raises(TypeError, match=f"{name} would be written down"):
        connect(target, {name: "secret"})


def test_what_json_changes_is_not_written_down(target: str) -> None:
    """It would come back as something else."""
    with pytest.raises(TypeError, match="client_settings cannot be written as JSON"):
        connect(target, {"timeout_s": {1, 2}})
    with pytest.raises(TypeError, match="options cannot be written as JSON"):
        require_json("options", {"chunk_spans": [(1, 2)]})


def test_the_key_is_in_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read when the client is made."""
    connection = connect("127.0.0.1:1", api_key_env_var="KEY_OF_MINE")
    monkeypatch.setenv("KEY_OF_MINE", "one-key")
    assert ("x-api-key", "one-key") in connection.client()._call_metadata()
