"""txtai: indexes that are kept, and ranked searches."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import SHORT
from txtai import Embeddings
from txtai.pipeline import Reranker

from embedgrpc.client.errors import EncodeError, ModelChangedError, UnauthenticatedError
from embedgrpc.client.integrations.txtai import EmbedGrpcSimilarity, EmbedGrpcVectors

DOCUMENTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]
QUERY = "how tall is the tower?"
METHOD = "embedgrpc.client.integrations.txtai.EmbedGrpcVectors"


def configured(target, model="", **vectors):
    return {"method": METHOD, "path": model, "vectors": {"target": target, **vectors}}


def test_vectors_are_those_of_the_plain_client(target, client):
    """Documents have the model's prompt for documents, queries that for queries."""
    embeddings = Embeddings(configured(target, "embed"))
    assert isinstance(embeddings.model, EmbedGrpcVectors)
    for category, expected in (
        ("data", client.encode_document(DOCUMENTS)),
        ("query", client.encode_query(DOCUMENTS)),
    ):
        found = embeddings.batchtransform(DOCUMENTS, category)
        assert np.allclose(np.asarray(found), expected, atol=1e-6)
    short = Embeddings(configured(target, "embed", options={"dimensions": 8}))
    found = short.batchtransform(DOCUMENTS, "data")
    assert np.allclose(found, client.encode_document(DOCUMENTS, dimensions=8), atol=1e-6)


def test_instructions_of_txtai_are_the_only_prompt(target, client):
    """The model's prompts would double them."""
    instructions = {"query": "ask: ", "data": "read: "}
    embeddings = Embeddings({**configured(target, "embed"), "instructions": instructions})
    found = embeddings.transform(QUERY, "query")
    assert np.allclose(found, client.encode(f"ask: {QUERY}", prompt_text=""), atol=1e-6)


def test_an_index_opens_again_in_another_process(target, tmp_path):
    """It finds the class and the server by itself."""
    embeddings = Embeddings({**configured(target, "minilm"), "content": True})
    embeddings.index(DOCUMENTS)
    embeddings.save(str(tmp_path / "index"))
    program = (
        "import sys; from txtai import Embeddings\n"
        "embeddings = Embeddings(); embeddings.load(sys.argv[1])\n"
        "print(embeddings.search(sys.argv[2], 1)[0]['text'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "index"), QUERY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == DOCUMENTS[1], done.stderr


def test_the_key_is_read_from_the_environment_and_never_kept(
    keyed_target, key, tmp_path, monkeypatch
):
    """Without the variable, the server refuses the call; with it, no file has the key."""
    configuration = configured(keyed_target, "embed", api_key_env_var="KEY_OF_MINE")
    with pytest.raises(UnauthenticatedError):
        Embeddings(configuration).index(DOCUMENTS)
    monkeypatch.setenv("KEY_OF_MINE", key)
    embeddings = Embeddings(configuration)
    embeddings.index(DOCUMENTS)
    embeddings.save(str(tmp_path / "index"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"KEY_OF_MINE" in path.read_bytes() for path in files)
    assert not any(key.encode() in path.read_bytes() for path in files)


def test_another_model_of_the_same_name_is_refused(target, client):
    """An index that knows the fingerprint never mixes vectors of two models."""
    fingerprint = client.get_model("minilm").fingerprint
    embeddings = Embeddings(configured(target, "minilm", fingerprint=fingerprint))
    embeddings.index(DOCUMENTS)
    with pytest.raises(ModelChangedError, match="of-another"):
        Embeddings(configured(target, "minilm", fingerprint="of-another")).index(DOCUMENTS)


def test_a_text_that_fails_is_named(target):
    """Its batch fails."""
    with pytest.raises(EncodeError, match=r"1 of 2 texts failed; texts\[1\]"):
        Embeddings(configured(target, "embed")).index(["a text", " "])


def test_texts_are_ranked_as_by_the_plain_client(target, client):
    """For one query, for several, and in txtai's reranker."""
    similarity = EmbedGrpcSimilarity(target, "cross")
    wanted = [
        (one["corpus_id"], one["score"]) for one in client.rank(QUERY, DOCUMENTS, model="cross")
    ]
    assert similarity(QUERY, DOCUMENTS) == wanted
    assert similarity([QUERY, QUERY], DOCUMENTS) == [wanted, wanted]
    embeddings = Embeddings({**configured(target, "minilm"), "content": True})
    embeddings.index(DOCUMENTS)
    found = Reranker(embeddings, similarity)(QUERY, 3)
    assert [(row["text"], row["score"]) for row in found] == [
        (DOCUMENTS[index], score) for index, score in wanted
    ]


def test_cranfield_is_searched_as_well_as_with_the_plain_client(target, cranfield):
    """Its nDCG@10 is equal."""
    embeddings = Embeddings({**configured(target, "minilm", options=SHORT), "backend": "numpy"})
    embeddings.index((name, text, None) for name, text in cranfield.documents.items())

    def search(text):
        return [name for name, _ in embeddings.search(text, 10)]

    assert cranfield.ndcg(search) == pytest.approx(cranfield.expected, abs=1e-3)
