"""Chroma: its own tests of registered functions, and collections that are kept."""

import subprocess
import sys
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb import K, Schema, SparseVectorIndexConfig
from chromadb.test.ef import test_custom_ef as published_custom
from chromadb.test.ef import test_ef as published
from chromadb.utils.embedding_functions import (
    config_to_embedding_function,
    known_embedding_functions,
    sparse_known_embedding_functions,
)
from conftest import SHORT

from embedgrpc.client.errors import EncodeError, ModelChangedError, UnauthenticatedError
from embedgrpc.client.integrations.chroma import (
    EmbedGrpcEmbeddingFunction,
    EmbedGrpcSparseEmbeddingFunction,
)

DOCUMENTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]
QUERY = "how tall is the tower?"
# What Chroma itself tests of functions, with ours registered among them.
PUBLISHED = [
    published.test_get_builtins_holds,
    published.test_default_ef_exists,
    published.test_ef_imports,
    published.test_validation_context_with_custom_ef,
    published_custom.test_legacy_custom_ef,
    published_custom.test_custom_ef,
    published_custom.test_custom_ef_registration,
]


@pytest.fixture
def database(tmp_path):
    return chromadb.PersistentClient(str(tmp_path / "chroma"))


@pytest.mark.parametrize("test", PUBLISHED, ids=lambda test: test.__name__)
def test_the_published_tests_pass(test):
    """Registering ours leaves what Chroma promises as it was."""
    assert known_embedding_functions["embedgrpc"] is EmbedGrpcEmbeddingFunction
    test()


def test_the_published_test_of_a_custom_function(target, monkeypatch):
    """Ours returns what Chroma's test wants of a function: a list of float32 arrays."""
    function = EmbedGrpcEmbeddingFunction(target)
    monkeypatch.setattr(published_custom, "CustomEmbeddingFunction", lambda: function)
    monkeypatch.setattr(
        published_custom.np, "array_equal", lambda found, _: found.dtype == np.float32
    )
    published_custom.test_custom_ef()


def test_vectors_are_those_of_the_plain_client(target, client):
    """Documents have the model's prompt for documents, queries that for queries."""
    function = EmbedGrpcEmbeddingFunction(target)
    found = function(DOCUMENTS)
    assert np.array_equal(np.stack(found), client.encode_document(DOCUMENTS))
    assert np.array_equal(np.stack(function.embed_query([QUERY])), client.encode_query([QUERY]))
    short = EmbedGrpcEmbeddingFunction(target, options={"dimensions": 8})
    assert np.array_equal(
        np.stack(short(DOCUMENTS)), client.encode_document(DOCUMENTS, dimensions=8)
    )


def test_sparse_vectors_are_those_of_the_plain_client(target, client):
    """Terms and weights are equal, and the settings make the same function again."""
    options = {"max_sparse_terms": 5}
    function = EmbedGrpcSparseEmbeddingFunction(target, "splade", options=options)
    assert sparse_known_embedding_functions[function.name()] is EmbedGrpcSparseEmbeddingFunction
    again = function.build_from_config(function.get_config())
    for found, texts, input_type in (
        (again(DOCUMENTS), DOCUMENTS, "document"),
        (again.embed_query([QUERY]), [QUERY], "query"),
    ):
        expected = client.embed(
            texts,
            model="splade",
            representations=["sparse"],
            input_type=input_type,
            **options,
        )
        for one, other in zip(found, expected.sparse, strict=True):
            assert one.indices == other.indices.tolist()
            assert one.values == other.values.tolist()


def test_a_schema_keeps_the_sparse_function(target):
    """As JSON, from which Chroma makes it again."""
    function = EmbedGrpcSparseEmbeddingFunction(target, "splade", options={"max_sparse_terms": 5})
    schema = Schema()
    config = SparseVectorIndexConfig(embedding_function=function, source_key=K.DOCUMENT)
    schema.create_index(config=config, key="sparse")
    again = Schema.deserialize_from_json(schema.serialize_to_json()).keys["sparse"]
    found = again.sparse_vector.sparse_vector_index.config.embedding_function
    assert found.get_config() == function.get_config()


def test_settings_come_back(target, client):
    """Chroma's settings make a function with the same vectors; nothing in them is a secret."""
    function = EmbedGrpcEmbeddingFunction(
        target,
        "minilm",
        api_key_env_var="KEY_OF_MINE",
        options={"dimensions": 16},
        query_options={"prompt_text": "query: "},
        client_settings={"timeout_s": 30},
    )
    config = {"name": function.name(), "config": function.get_config()}
    again = config_to_embedding_function(config)
    assert again.get_config() == function.get_config()
    found = np.stack(again.embed_query([QUERY]))
    wanted = client.encode([QUERY], model="minilm", dimensions=16, prompt_text="query: ")
    assert np.array_equal(found, wanted)
    assert not function.is_legacy()
    with pytest.raises(TypeError, match="api_key would be written down"):
        EmbedGrpcEmbeddingFunction(target, client_settings={"api_key": "secret"})


@pytest.mark.parametrize(
    ("config", "message"),
    [({"targt": "a:1"}, "no setting 'targt'"), ({"options": "x"}, "options is not a dict")],
)
def test_wrong_settings_are_told(config, message):
    """An unknown name, or another type."""
    with pytest.raises(ValueError, match=message):
        EmbedGrpcEmbeddingFunction.build_from_config(config)
    with pytest.raises(TypeError, match="Function has no argument 'targt'; did you mean target"):
        EmbedGrpcEmbeddingFunction(targt="a:1")


def test_the_address_may_change_but_not_the_model(target, database):
    """A collection keeps the model that made its vectors."""
    function = EmbedGrpcEmbeddingFunction(target, "minilm")
    collection = database.create_collection("texts", embedding_function=function)
    other = EmbedGrpcEmbeddingFunction(target, "embed")
    with pytest.raises(ValueError, match="another model makes other vectors"):
        collection.modify(configuration={"embedding_function": other})
    moved = EmbedGrpcEmbeddingFunction(target, "minilm", client_settings={"timeout_s": 5})
    collection.modify(configuration={"embedding_function": moved})


def test_another_model_of_the_same_name_is_refused(target, client, database):
    """A collection that knows the fingerprint never mixes vectors of two models."""
    fingerprint = client.get_model("minilm").fingerprint
    function = EmbedGrpcEmbeddingFunction(target, "minilm", fingerprint=fingerprint)
    collection = database.create_collection("texts", embedding_function=function)
    collection.add(ids=["a"], documents=["a text"])
    other = EmbedGrpcEmbeddingFunction(target, "minilm", fingerprint="of-another")
    for call in (other, other.embed_query):
        with pytest.raises(ModelChangedError, match="of-another"):
            call(DOCUMENTS)
    with pytest.raises(ValueError, match="another fingerprint"):
        collection.modify(configuration={"embedding_function": other})


def test_a_collection_opens_again_in_another_process(target, tmp_path, database, client):
    """It finds the function by itself, and the same documents."""
    function = EmbedGrpcEmbeddingFunction(target, "minilm")
    collection = database.create_collection("texts", embedding_function=function)
    collection.add(ids=["a", "b", "c"], documents=DOCUMENTS)
    kept = collection.get(ids=["a", "b", "c"], include=["embeddings"])["embeddings"]
    # Chroma scales vectors that it compares by cosine.
    assert np.allclose(kept, client.encode_document(DOCUMENTS, model="minilm"), atol=1e-6)
    program = (
        "import chromadb, sys; import embedgrpc.client.integrations.chroma\n"
        "opened = chromadb.PersistentClient(sys.argv[1]).get_collection('texts')\n"
        "print(opened.query(query_texts=[sys.argv[2]], n_results=1)['ids'][0][0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "chroma"), QUERY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "b", done.stderr


def test_the_key_is_read_from_the_environment_and_never_kept(
    keyed_target, key, tmp_path, database, monkeypatch
):
    """Without the variable, the server refuses the call; with it, no file has the key."""
    function = EmbedGrpcEmbeddingFunction(keyed_target, api_key_env_var="KEY_OF_MINE")
    with pytest.raises(UnauthenticatedError):
        function(DOCUMENTS)
    monkeypatch.setenv("KEY_OF_MINE", key)
    function = EmbedGrpcEmbeddingFunction(keyed_target, api_key_env_var="KEY_OF_MINE")
    collection = database.create_collection("texts", embedding_function=function)
    collection.add(ids=["a", "b", "c"], documents=DOCUMENTS)
    files = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert any(b"KEY_OF_MINE" in path.read_bytes() for path in files)
    assert not any(key.encode() in path.read_bytes() for path in files)


def test_a_text_that_fails_is_named(target, database):
    """Nothing of its batch is added."""
    function = EmbedGrpcEmbeddingFunction(target)
    collection = database.create_collection("texts", embedding_function=function)
    with pytest.raises(EncodeError, match=r"1 of 3 texts failed; texts\[1\]"):
        collection.add(ids=["a", "b", "c"], documents=["a text", " ", "another"])
    assert collection.count() == 0


def test_the_space_is_that_of_the_model(target, database):
    """Of vectors of unit length, every space orders documents alike."""
    function = EmbedGrpcEmbeddingFunction(target, "minilm")
    assert function.default_space() == "cosine"
    assert function.supported_spaces() == ["cosine", "l2", "ip"]
    collection = database.create_collection("texts", embedding_function=function)
    assert collection.configuration["hnsw"]["space"] == "cosine"
    raw = EmbedGrpcEmbeddingFunction(target, "minilm", options={"normalize": False})
    assert raw.supported_spaces() == ["cosine"]


def test_a_collection_can_be_made_while_the_server_is_away(database):
    """The function is kept all the same, with a warning."""
    function = EmbedGrpcEmbeddingFunction("127.0.0.1:1", client_settings={"timeout_s": 1})
    with pytest.warns(UserWarning, match="no server says how"):
        collection = database.create_collection("texts", embedding_function=function)
    assert collection.configuration["embedding_function"].name() == "embedgrpc"


def test_cranfield_is_searched_as_well_as_with_the_plain_client(target, database, cranfield):
    """Its nDCG@10 is equal."""
    function = EmbedGrpcEmbeddingFunction(target, "minilm", options=SHORT)
    collection = database.create_collection("cranfield", embedding_function=function)
    collection.add(ids=list(cranfield.documents), documents=list(cranfield.documents.values()))

    def search(text):
        return collection.query(query_texts=[text], n_results=10)["ids"][0]

    assert cranfield.ndcg(search) == pytest.approx(cranfield.expected, abs=1e-3)
