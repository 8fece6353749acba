"""What stands where a SentenceTransformer or a CrossEncoder did, beside the real ones."""

import inspect
import os

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from embedgrpc.client.errors import EncodeError, UnauthenticatedError
from embedgrpc.client.integrations.sentence_transformers import (
    EmbedGrpcCrossEncoder,
    EmbedGrpcSentenceTransformer,
    EncodeOptions,
)

TEXTS = ["it is red", "the tower is 330 metres tall", "rivers flow to the sea"]
QUERY = "how tall is the tower?"
# The numbers of another library.
CLOSE = {"atol": 1e-5}


@pytest.fixture(scope="module")
def real():
    return SentenceTransformer(os.environ["EMBED_FOLDER"], device="cpu")


@pytest.fixture(scope="module")
def served(target):
    return EmbedGrpcSentenceTransformer(target, "embed")


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "look: "},
        {"prompt": ""},
        {"prompt_name": "query"},
        {"normalize_embeddings": True},
        {"truncate_dim": 8},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"batch_size": 2, "show_progress_bar": False, "device": "cpu"},
    ],
    ids=str,
)
def test_vectors_are_those_of_a_sentence_transformer(method, options, real, served):
    """Of many texts and of one, of its type and shape."""
    for texts in (TEXTS, TEXTS[0]):
        found = getattr(served, method)(texts, **options)
        wanted = getattr(real, method)(texts, **options)
        assert type(found) is type(wanted)
        if isinstance(wanted, list):
            assert [type(one) for one in found] == [type(one) for one in wanted]
            found, wanted = torch.stack(found), torch.stack(wanted)
        assert found.shape == wanted.shape
        assert np.allclose(np.asarray(found), np.asarray(wanted), **CLOSE)


@pytest.mark.parametrize("precision", ["ubinary", "binary"])
def test_signs_are_those_of_a_sentence_transformer(precision, real, served):
    """Eight in a byte."""
    found = served.encode(TEXTS, precision=precision)
    wanted = real.encode(TEXTS, precision=precision)
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)


def test_similarities_are_those_of_a_sentence_transformer(real, served):
    """Of arrays and tensors, each with each and one by one."""
    left, right = served.encode(TEXTS), served.encode(TEXTS[::-1])
    assert served.similarity_fn_name == real.similarity_fn_name
    for method in ("similarity", "similarity_pairwise"):
        wanted = getattr(real, method)(left, right)
        found = getattr(served, method)(left, right)
        assert np.allclose(found, wanted.numpy(), **CLOSE)
        tensors = getattr(served, method)(torch.from_numpy(left), torch.from_numpy(right))
        assert isinstance(tensors, torch.Tensor)
        assert torch.allclose(tensors, wanted, **CLOSE)


def test_it_describes_the_model_as_a_sentence_transformer_does(real, served):
    """Its lengths and prompts."""
    assert served.get_embedding_dimension() == real.get_embedding_dimension()
    assert served.get_sentence_embedding_dimension() == real.get_embedding_dimension()
    assert served.max_seq_length == real.max_seq_length
    assert served.prompts == real.prompts
    assert served.default_prompt_name == real.default_prompt_name


def test_every_argument_of_a_sentence_transformer_is_known():
    """The first ones by position, too."""
    wanted = [
        name
        for name in inspect.signature(SentenceTransformer.encode).parameters
        if name not in ("self", "kwargs")
    ]
    ours = [
        name
        for name in inspect.signature(EmbedGrpcSentenceTransformer.encode).parameters
        if name not in ("self", "options")
    ]
    assert ours == wanted[: len(ours)]
    assert set(wanted[len(ours) :]) - {"sentences"} <= set(EncodeOptions.__annotations__)


def test_what_no_server_has_is_refused(served):
    """With the value and what there is."""
    with pytest.raises(ValueError, match="precision is 'int8'"):
        served.encode(TEXTS, precision="int8")
    with pytest.raises(ValueError, match="output_value"):
        served.encode(TEXTS, output_value="token_embeddings")
    with pytest.raises(TypeError, match="no option 'normalise'"):
        served.encode(TEXTS, normalise=True)


def test_errors_are_those_of_the_client(target, keyed_target, key):
    """A text that fails is named; a wrong key is refused."""
    with pytest.raises(EncodeError, match=r"texts\[1\]"):
        EmbedGrpcSentenceTransformer(target).encode(["a text", " "])
    with pytest.raises(UnauthenticatedError):
        EmbedGrpcSentenceTransformer(keyed_target).encode(TEXTS)
    assert len(EmbedGrpcSentenceTransformer(keyed_target, api_key=key).encode(TEXTS)) == len(TEXTS)


def test_scores_are_those_of_a_cross_encoder(target):
    """Of pairs of several queries, of one pair, on each scale, and of a ranking."""
    real = CrossEncoder(os.environ["CROSS_FOLDER"], device="cpu")
    served = EmbedGrpcCrossEncoder(target, "cross")
    pairs = [(QUERY, TEXTS[0]), ("a colour", TEXTS[1]), (QUERY, TEXTS[2]), (QUERY, TEXTS[0])]
    for options in ({}, {"activation_fn": torch.nn.Identity()}, {"convert_to_tensor": True}):
        found, wanted = served.predict(pairs, **options), real.predict(pairs, **options)
        assert type(found) is type(wanted)
        assert np.allclose(np.asarray(found), np.asarray(wanted), **CLOSE)
    assert np.allclose(served.predict(pairs[0]), real.predict(pairs[0]), **CLOSE)
    found = served.rank(QUERY, TEXTS, top_k=2, return_documents=True)
    for one, other in zip(found, real.rank(QUERY, TEXTS, 2, True), strict=True):
        assert (one["corpus_id"], one["text"]) == (other["corpus_id"], other["text"])
        assert one["score"] == pytest.approx(float(other["score"]), abs=1e-5)
    with pytest.raises(ValueError, match="activation_fn"):
        served.predict(pairs, activation_fn=torch.nn.ReLU())
