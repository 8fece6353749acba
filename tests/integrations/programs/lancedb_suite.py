"""LanceDB: tables that embed their texts, and searches that are ranked."""

import subprocess
import sys
import time

import lancedb
import numpy as np
import pytest
from conftest import SHORT
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

from embedgrpc.client.errors import EncodeError, ModelChangedError, UnauthenticatedError
from embedgrpc.client.integrations.lancedb import EmbedGrpcEmbeddingFunction, EmbedGrpcReranker

DOCUMENTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]
QUERY = "how tall is the tower?"


def make_table(path, function, texts=DOCUMENTS, name="texts"):
    class Row(LanceModel):
        id: str
        text: str | None = function.SourceField()
        vector: Vector(function.ndims()) | None = function.VectorField(default=None)

    table = lancedb.connect(path).create_table(name, schema=Row)
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    table.add(rows, on_bad_vectors="null")
    return table


def create(target, **arguments):
    return get_registry().get("embedgrpc").create(target=target, **arguments)


def test_vectors_are_those_of_the_plain_client(target, client, tmp_path):
    """Source texts have the model's prompt for documents, searches that for queries."""
    function = create(target)
    assert function.ndims() == client.get_model("embed").dimensions
    found = np.stack(function.compute_source_embeddings(DOCUMENTS))
    assert np.array_equal(found, client.encode_document(DOCUMENTS))
    (query,) = function.compute_query_embeddings(QUERY)
    assert np.array_equal(query, client.encode_query(QUERY))
    kept = make_table(tmp_path, function).to_arrow()["vector"].to_pylist()
    assert np.array_equal(np.asarray(kept, np.float32), client.encode_document(DOCUMENTS))


def test_shorter_vectors(target, client):
    """The options reach the server."""
    function = create(target, options={"dimensions": 8})
    assert function.ndims() == 8
    found = np.stack(function.compute_source_embeddings(DOCUMENTS))
    assert np.array_equal(found, client.encode_document(DOCUMENTS, dimensions=8))


def test_a_table_opens_again_in_another_process(target, tmp_path):
    """It finds the function by itself."""
    make_table(tmp_path, create(target, model="minilm"))
    program = (
        "import lancedb, sys; import embedgrpc.client.integrations.lancedb\n"
        "table = lancedb.connect(sys.argv[1]).open_table('texts')\n"
        "print(table.search(sys.argv[2]).limit(1).to_list()[0]['id'])\n"
        "table.add([{'id': 'new', 'text': 'a colour'}]); print(table.count_rows())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), QUERY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["1", "4"], done.stderr


def test_a_text_that_fails_is_named_at_once(target, tmp_path):
    """It is not repeated for minutes, and nothing of its batch is added."""
    table = make_table(tmp_path, create(target))
    before = time.monotonic()
    # LanceDB passes it through Arrow, which keeps the message.
    with pytest.raises(RuntimeError, match=r"1 of 2 texts failed; texts\[1\]"):
        table.add([{"id": "4", "text": "a text"}, {"id": "5", "text": " "}])
    assert time.monotonic() - before < 10
    assert table.count_rows() == 3
    with pytest.raises(EncodeError, match=r"texts\[1\]: .*not counting nulls"):
        create(target).compute_source_embeddings(["a text", None, " "])


def test_a_null_has_no_vector(target, client, tmp_path):
    """The other rows have theirs."""
    table = make_table(tmp_path, create(target), ["a text", None, "another"])
    vectors = table.to_arrow()["vector"].to_pylist()
    assert vectors[1] is None
    expected = client.encode_document(["a text", "another"])
    assert np.array_equal(np.asarray([vectors[0], vectors[2]], np.float32), expected)


def test_the_key_is_read_from_the_environment_and_never_kept(
    keyed_target, key, tmp_path, monkeypatch
):
    """Without the variable, the server refuses the call; with it, no file has the key."""
    with pytest.raises(UnauthenticatedError):
        create(keyed_target, api_key_env_var="KEY_OF_MINE").ndims()
    monkeypatch.setenv("KEY_OF_MINE", key)
    make_table(tmp_path, create(keyed_target, api_key_env_var="KEY_OF_MINE"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"KEY_OF_MINE" in path.read_bytes() for path in files)
    assert not any(key.encode() in path.read_bytes() for path in files)
    with pytest.raises(TypeError, match="api_key would be written down"):
        create(keyed_target, client_settings={"api_key": "secret"})


def test_a_misspelt_setting_is_refused():
    """Otherwise texts would go to the default server."""
    with pytest.raises(ValueError, match="targt"):
        EmbedGrpcEmbeddingFunction.create(targt="127.0.0.1:1")


def test_a_key_may_be_a_variable_of_lancedb(keyed_target, key, tmp_path):
    """And must be one: LanceDB refuses the key itself, and keeps the name."""
    get_registry().set_var("one_key", key)
    function = create(keyed_target, api_key="$var:one_key")
    make_table(tmp_path, function)
    assert key not in repr(function)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(key.encode() in path.read_bytes() for path in files)
    with pytest.raises(ValueError, match="'api_key' cannot be set to a hardcoded value"):
        create(keyed_target, api_key=key)


def test_another_model_of_the_same_name_is_refused(target, client):
    """A table that knows the fingerprint never mixes vectors of two models."""
    fingerprint = client.get_model("minilm").fingerprint
    assert create(target, model="minilm", fingerprint=fingerprint).compute_query_embeddings(QUERY)
    other = create(target, model="minilm", fingerprint="of-another")
    for call in (other.compute_query_embeddings, other.compute_source_embeddings):
        with pytest.raises(ModelChangedError, match="of-another"):
            call(QUERY)


def test_functions_with_equal_settings_are_equal(target):
    """And have one hash."""
    one, other = (create(target, options={"dimensions": 8}) for _ in range(2))
    assert (one, hash(one)) == (other, hash(other))
    assert one != create(target)


@pytest.fixture
def searched(target, tmp_path):
    """A table with an index of words, one of whose rows has no text."""
    table = make_table(tmp_path, create(target, model="minilm"), [*DOCUMENTS, None])
    table.create_fts_index("text", use_tantivy=False)
    return table


@pytest.mark.parametrize("kind", ["vector", "fts", "hybrid"])
@pytest.mark.parametrize("return_score", ["relevance", "all"])
def test_searches_are_ranked_as_by_the_plain_client(kind, return_score, target, client, searched):
    """The rows are in the order of the model's scores, which stand beside them."""
    reranker = EmbedGrpcReranker(target, "cross", return_score=return_score)
    found = searched.search(QUERY, query_type=kind).limit(4).rerank(reranker).to_list()
    texts = [row["text"] for row in found if row["text"]]
    expected = {
        DOCUMENTS[one["corpus_id"]]: one["score"]
        for one in client.rank(QUERY, DOCUMENTS, model="cross")
    }
    assert texts == [text for text in expected if text in texts]
    for row in found:
        wanted = expected[row["text"]] if row["text"] else None
        assert row["_relevance_score"] == (wanted and pytest.approx(wanted, abs=1e-6))
    columns = {"vector": {"_distance"}, "fts": {"_score"}, "hybrid": {"_distance", "_score"}}
    kept = columns[kind] if return_score == "all" else set()
    assert columns["hybrid"].intersection(found[0]) == kept


def test_the_reranker_limits_rows(target, searched):
    """After it ranked all."""
    reranker = EmbedGrpcReranker(target, "cross", top_n=1)
    assert len(searched.search(QUERY).limit(4).rerank(reranker, QUERY).to_list()) == 1


def test_cranfield_is_searched_as_well_as_with_the_plain_client(target, tmp_path, cranfield):
    """Its nDCG@10 is equal."""
    function = create(target, model="minilm", options=SHORT)
    names = list(cranfield.documents)
    table = make_table(tmp_path, function, cranfield.documents.values())

    def search(text):
        found = table.search(text).distance_type("cosine").limit(10).to_list()
        return [names[int(row["id"])] for row in found]

    assert cranfield.ndcg(search) == pytest.approx(cranfield.expected, abs=1e-3)


def test_the_class_is_the_registered_one():
    """By its name in tables."""
    assert get_registry().get("embedgrpc") is EmbedGrpcEmbeddingFunction
