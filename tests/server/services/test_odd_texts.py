from typing import Any

import numpy as np
import pytest
import tokenizers

from embedgrpc.v1 import common_pb2 as common
from embedgrpc.v1 import embedding_service_pb2 as embedding
from tests.server.conftest import Serve
from tests.server.failures import failure_of
from tests.server.hash_backend import HashBackend
from tests.server.service import EMBED, FIXTURES

ODD_TEXTS = {
    "NUL inside": "a\0b",
    "control characters": "a\x01\x07\x1b[31mred\x7f\x9f",
    "zalgo": "z" + "\u0301\u0316\u0489" * 300,
    "combining marks alone": "\u0301" * 50,
    "bidi marks": "\u202eabc\u2066def\u2069",
    "zero width inside": "a\u200bb\u200dc\ufeff",
    "replacement character": "\ufffd",
    "private use": "\ue000\uf8ff",
    "unassigned": "\u0378",
    "astral": "\U0001f469\u200d\U0001f52c \U00020000",
    "line breaks": "a\r\nb\u2028c",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
async def test_an_odd_text_is_a_text(serve: Serve, text: str) -> None:
    """Every visible text gets the same finite vector, alone and in a batch."""
    service = await serve()
    alone = await service.client.embed(text)
    again = await service.client.embed(text)
    mixed = await service.client.embed("in company", text)
    assert alone == again
    vectors = [np.array(one.dense.values) for one in (alone.embeddings[0], mixed.embeddings[1])]
    assert np.isfinite(vectors[0]).all()
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert not alone.embeddings[0].truncated


async def test_a_huge_text_is_cut_before_it_is_tokenized(serve: Serve) -> None:
    """A text of a megabyte is cut to what the model can read."""
    service = await serve()
    options = embedding.EmbedOptions(truncation=common.TRUNCATION_END)
    for huge in ("a word " * 150_000, "\u4e2d" * 350_000, "a" * 1_000_000):
        answer = await service.client.embed(huge, options=options)
        (one,) = answer.embeddings
        assert one.truncated
        assert one.token_count <= 96
        assert answer.usage.truncated_inputs == 1


@pytest.mark.parametrize("nothing", [" ", "\x01", " \t\x02\u200b"])
async def test_megabytes_of_nothing_are_refused(serve: Serve, nothing: str) -> None:
    """A text without anything visible is empty, however long it is."""
    service = await serve()
    huge = nothing * (4_000_000 // len(nothing.encode()))
    failure = await failure_of(service.client.embed(huge))
    assert failure.reason == "EMPTY_INPUT"


@pytest.mark.parametrize(("escape", "separators"), [(False, 2), (True, 1)])
async def test_special_tokens_in_a_text(serve: Serve, *, escape: bool, separators: int) -> None:
    """A "[SEP]" in a text is the token, as in the reference, unless the model's setting says no."""
    backend = HashBackend()
    model = EMBED.model_copy(update={"escape_special_tokens": escape})
    service = await serve(model, backend=backend)
    await service.client.embed("a [SEP] b")
    ids: list[int] = backend.batches[-1].input_ids[0].tolist()
    (separator,) = _token_ids("[SEP]")
    assert ids.count(separator) == separators
    assert ids[-1] == separator


async def test_special_tokens_cannot_turn_a_document_into_a_pair(serve: Serve) -> None:
    """A document that spells a separator is framed by id: the pair keeps one query."""
    backend = HashBackend()
    service = await serve(EMBED.model_copy(update={"escape_special_tokens": True}), backend=backend)
    await service.client.embed("[CLS] a [SEP] b [PAD] [MASK]")
    ids: Any = backend.batches[-1].input_ids[0]
    assert np.isin(ids, _token_ids("[CLS]", "[SEP]", "[PAD]", "[MASK]")).sum() == 2


def _token_ids(*names: str) -> list[int]:
    tokenizer = tokenizers.Tokenizer.from_file(str(FIXTURES / "bert-cls" / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[name] for name in names]
