from dataclasses import replace

import numpy as np
import pytest

from embedgrpc.engine.errors import InputTooLongError, NonFiniteOutputError
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.embeddings import Embeddings, EmbedSpec
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.outputs import SENTENCE_EMBEDDING
from embedgrpc.models.kinds import Representation, Truncation
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.engine.fakes import FakeBackend, running
from tests.models.runner import FIXTURES

CALL = Call(WorkClass.INTERACTIVE)
FILES = resolve(str(FIXTURES / "bert-mean"))
# Of a model that does not give its vectors unit length by itself.
METADATA = replace(read(FILES), normalize=False)
SPEC = EmbedSpec(
    prompt="",
    dimensions=2,
    normalize=False,
    truncation=Truncation.NONE,
    max_tokens=6,
    representations=(Representation.DENSE,),
)


class _Vectors(FakeBackend):
    """Answers with the number of tokens, and with NaN or zeros where it is told to."""

    def __init__(self, special: dict[int, list[float]]) -> None:
        super().__init__(answers=lambda text: special.get(len(text), [len(text), 1]))


async def _embed(embedder: Embedder, texts: list[str], spec: EmbedSpec) -> Embeddings:
    """Embed texts; the answer is what would be packed."""
    size_bytes = sum(map(len, texts))
    return await embedder.embed(
        texts, spec, CALL, size_bytes=size_bytes, pack=lambda embeddings: embeddings
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The model's tokenizer."""
    return Tokenizer.load(METADATA)


async def test_nothing_runs_when_one_text_is_too_long(tokenizer: Tokenizer) -> None:
    """Of a call whose second text cannot be prepared nothing is run, and the text is named."""
    backend = _Vectors({})
    with running(backend, tokenizer=tokenizer) as engine:
        embedder = Embedder(METADATA, tokenizer, engine.pipeline, 1000, [SENTENCE_EMBEDDING])
        with pytest.raises(InputTooLongError) as failed:
            await _embed(embedder, ["a", "a a a a a", "a a"], SPEC)
        assert failed.value.field == "texts[1]"
        assert failed.value.metadata["tokens"] == "7"
    assert not backend.batches


async def test_rows_are_those_of_the_texts(tokenizer: Tokenizer) -> None:
    """A text of exactly the limit is whole; counts hold the special tokens."""
    with running(_Vectors({}), tokenizer=tokenizer) as engine:
        embedder = Embedder(METADATA, tokenizer, engine.pipeline, 1000, [SENTENCE_EMBEDDING])
        embeddings = await _embed(embedder, ["a", "a a a a", "a a"], SPEC)
    assert embeddings.vectors is not None
    assert embeddings.vectors.tolist() == [[3, 1], [6, 1], [4, 1]]
    assert embeddings.token_counts == [3, 6, 4]
    assert embeddings.truncated == [False, False, False]


@pytest.mark.parametrize("row", [[0.0, 0.0], [np.nan, 1.0]], ids=["zeros", "NaN"])
async def test_a_vector_without_direction_names_its_text(
    tokenizer: Tokenizer, row: list[float]
) -> None:
    """Zeros cannot get unit length and NaN is no number: the text that has them is named."""
    spec = EmbedSpec(
        prompt="",
        dimensions=2,
        normalize=True,
        truncation=Truncation.END,
        max_tokens=6,
        representations=(Representation.DENSE,),
    )
    with running(_Vectors({5: row}), tokenizer=tokenizer) as engine:
        embedder = Embedder(METADATA, tokenizer, engine.pipeline, 1000, [SENTENCE_EMBEDDING])
        with pytest.raises(NonFiniteOutputError) as failed:
            await _embed(embedder, ["a", "a a", "a a a"], spec)
        assert failed.value.field == "texts[2]"
        embeddings = await _embed(embedder, ["a", "a a a a a a a a"], spec)
    assert embeddings.truncated == [False, True]
    assert embeddings.vectors is not None
    assert np.linalg.norm(embeddings.vectors, axis=1).tolist() == pytest.approx([1, 1])
