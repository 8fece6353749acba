from dataclasses import replace

import numpy as np
import pytest

from embedgrpc.engine.errors import InputTooLongError, NonFiniteOutputError, UnsupportedError
from embedgrpc.engine.results.rows import OutputRows
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.embeddings import Embeddings, EmbedSpec
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.folder.properties import read
from embedgrpc.models.folder.splade_config import SpladePooling, SpladeStrategy
from embedgrpc.models.graphs.outputs import (
    POOLED_EMBEDDING,
    SENTENCE_EMBEDDING,
    TOKEN_VECTORS,
    VOCABULARY_WEIGHTS,
)
from embedgrpc.models.kinds import Representation, Truncation
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.engine.fakes import FakeBackend, RecordingSink, running
from tests.models.runner import FIXTURES

CALL = Call(WorkClass.INTERACTIVE)
FILES = resolve(str(FIXTURES / "bert-mean"))
# The properties of a model that does not normalize its vectors.
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
    """Returns the number of tokens, or given rows for some lengths."""

    def __init__(self, special: dict[int, list[float]]) -> None:
        super().__init__(answers=lambda text: special.get(len(text), [len(text), 1]))


async def _embed(embedder: Embedder, texts: list[str], spec: EmbedSpec) -> Embeddings:
    """Embed texts; return what would be packed."""
    size_bytes = sum(map(len, texts))
    result = await embedder.embed(
        texts, spec, CALL, size_bytes=size_bytes, pack=lambda result: result
    )
    assert result.embeddings is not None
    return result.embeddings


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The model's tokenizer."""
    return Tokenizer.load(METADATA)


async def test_nothing_runs_when_one_text_is_too_long(tokenizer: Tokenizer) -> None:
    """If a text of a call cannot be prepared, nothing runs, and the error names the text."""
    backend = _Vectors({})
    with running(backend, tokenizer=tokenizer) as engine:
        embedder = Embedder(METADATA, tokenizer, engine.pipeline, 1000, [SENTENCE_EMBEDDING])
        with pytest.raises(InputTooLongError) as failed:
            await _embed(embedder, ["a", "a a a a a", "a a"], SPEC)
        assert failed.value.field == "texts[1]"
        assert failed.value.metadata["tokens"] == "7"
    assert not backend.batches


async def test_rows_are_those_of_the_texts(tokenizer: Tokenizer) -> None:
    """A text of exactly the limit is not cut; counts include special tokens."""
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
    """Zeros cannot be normalized and NaN is no number: the error names the text."""
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


async def test_as_many_texts_as_dimensions_are_shortened(tokenizer: Tokenizer) -> None:
    """Vectors are shortened to the dimensions wanted, however many texts there are."""
    backend = FakeBackend(answers=lambda text: [len(text), 1, 2])
    with running(backend, tokenizer=tokenizer) as engine:
        embedder = Embedder(METADATA, tokenizer, engine.pipeline, 1000, [SENTENCE_EMBEDDING])
        embeddings = await _embed(embedder, ["a", "a a"], SPEC)
    assert embeddings.vectors is not None
    assert embeddings.vectors.tolist() == [[3, 1], [4, 1]]


async def test_a_graph_needs_only_the_outputs_wanted(tokenizer: Tokenizer) -> None:
    """A graph with exactly the outputs wanted suffices; one that always normalizes does not."""
    properties = replace(METADATA, normalize=True)
    with running(FakeBackend(), tokenizer=tokenizer) as engine:
        plain, whole = (
            Embedder(properties, tokenizer, engine.pipeline, 1000, outputs)
            for outputs in ([SENTENCE_EMBEDDING], [SENTENCE_EMBEDDING, POOLED_EMBEDDING])
        )
        plain.check_spec(replace(SPEC, normalize=True), field="options")
        whole.check_spec(SPEC, field="options")
        with pytest.raises(UnsupportedError) as refused:
            plain.check_spec(SPEC, field="options")
    assert refused.value.field == "options.normalize"


async def test_all_sparse_terms_are_kept_unless_a_limit_is_set(tokenizer: Tokenizer) -> None:
    """Without a limit every term counts, as it does when documents are ranked."""
    properties = replace(METADATA, splade=SpladePooling(SpladeStrategy.MAX, 1, 4))
    with running(FakeBackend(), tokenizer=tokenizer) as engine:
        embedder = Embedder(properties, tokenizer, engine.pipeline, 1000, [])
        weights = np.array([[0, 0.5, 0.25, 0.75]], np.float32)
        rows = OutputRows({VOCABULARY_WEIGHTS: weights}, {})
        job = engine.job(["a"], CALL, RecordingSink())
        spec = replace(SPEC, representations=(Representation.SPARSE,))
        for limit, indices in ((None, [1, 2, 3]), (2, [1, 3])):
            limited = spec if limit is None else replace(spec, max_sparse_terms=limit)
            (vector,) = embedder.finish(job, [0], rows, limited).sparse or ()
            assert vector.indices.tolist() == indices


async def test_token_vectors_are_computed_for_those_who_ask(tokenizer: Tokenizer) -> None:
    """Other requests do not name the output, and need no places of tokens."""
    with running(FakeBackend(), tokenizer=tokenizer) as engine:
        embedder = Embedder(
            METADATA, tokenizer, engine.pipeline, 1000, [SENTENCE_EMBEDDING, TOKEN_VECTORS]
        )
        assert embedder.outputs(SPEC) == (SENTENCE_EMBEDDING,)
        asked = replace(SPEC, token_dimensions=METADATA.token_dimensions)
        assert embedder.outputs(asked) == (SENTENCE_EMBEDDING, TOKEN_VECTORS)
