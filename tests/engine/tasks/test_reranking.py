import asyncio
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, product

import numpy as np
import pytest

from embedgrpc.engine.errors import EngineError, InputTooLongError, NonFiniteOutputError
from embedgrpc.engine.tasks.cross_encoding import CrossEncoder
from embedgrpc.engine.tasks.embedder import Embedder
from embedgrpc.engine.tasks.reranking import RerankSpec, ScoreScale
from embedgrpc.engine.tasks.similarity import SimilarityReranker
from embedgrpc.engine.work import Call
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.folder.properties import ModelProperties, read
from embedgrpc.models.kinds import Activation, Representation, RerankMethod, Truncation
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.engine.fakes import FakeBackend, running
from tests.models.runner import FIXTURES

CALL = Call(WorkClass.INTERACTIVE)
SPEC = RerankSpec(scale=ScoreScale.RAW, truncation=Truncation.END, max_tokens=64)


@pytest.fixture(scope="module")
def properties() -> ModelProperties:
    """The cross-encoder's properties."""
    return read(resolve(str(FIXTURES / "cross-bert")))


@pytest.fixture(scope="module")
def tokenizer(properties: ModelProperties) -> Tokenizer:
    """The cross-encoder's tokenizer."""
    return Tokenizer.load(properties)


def by_position(*answers: Sequence[float]) -> Callable[[str], Sequence[float]]:
    """Return the rows of one batch in the order in which they were queued."""
    left = iter(answers)
    return lambda _: next(left)


def some_documents(count: int) -> list[str]:
    """Return distinct documents of three tokens each."""
    return [" ".join(letters) for letters in islice(product("abcdefgh", repeat=3), count)]


@contextmanager
def cross_encoder(
    properties: ModelProperties, tokenizer: Tokenizer, answers: Callable[[str], Sequence[float]]
) -> Iterator[CrossEncoder]:
    """Yield a cross-encoder with given logits."""
    with running(FakeBackend(answers=answers), tokenizer=tokenizer) as engine:
        yield CrossEncoder(properties, tokenizer, engine.pipeline, 1000)


@contextmanager
def similarity(
    properties: ModelProperties, tokenizer: Tokenizer, answers: Callable[[str], Sequence[float]]
) -> Iterator[SimilarityReranker]:
    """Yield a reranker by cosine with given vectors."""
    with running(FakeBackend(answers=answers), tokenizer=tokenizer) as engine:
        described = replace(
            properties, dimensions=2, normalize=False, representations=(Representation.DENSE,)
        )
        embedder = Embedder(described, tokenizer, engine.pipeline, 1000, [])
        yield SimilarityReranker(embedder, RerankMethod.SIMILARITY, properties.max_tokens)


async def test_best_document_comes_first(properties: ModelProperties, tokenizer: Tokenizer) -> None:
    """Documents are sorted by score, and each score stays with its document."""
    with cross_encoder(properties, tokenizer, by_position([0.5], [-2], [3])) as reranker:
        ranking = await reranker.rerank(
            "query", ["a b", "c d", "e f"], SPEC, CALL, documents_bytes=1
        )
    assert ranking.indices.tolist() == [2, 0, 1]
    assert ranking.scores.tolist() == [3, 0.5, -2]
    assert ranking.truncated.tolist() == [False] * 3
    assert ranking.truncated_inputs == 0


async def test_equal_scores_keep_their_order(
    properties: ModelProperties, tokenizer: Tokenizer
) -> None:
    """Documents with equal scores keep their order; minus zero equals zero."""
    scores = [[0.0], [1.0], [-0.0], [1.0], [0.0]] * 20
    with cross_encoder(properties, tokenizer, by_position(*scores)) as reranker:
        ranking = await reranker.rerank("query", some_documents(100), SPEC, CALL, documents_bytes=1)
    best = [index for index in range(100) if index % 5 in (1, 3)]
    rest = [index for index in range(100) if index % 5 not in (1, 3)]
    assert ranking.indices.tolist() == best + rest


@pytest.mark.parametrize(
    ("activation", "scale", "sigmoid"),
    [
        (Activation.SIGMOID, ScoreScale.MODEL, True),
        (Activation.SIGMOID, ScoreScale.RAW, False),
        (Activation.IDENTITY, ScoreScale.MODEL, False),
        (Activation.IDENTITY, ScoreScale.SIGMOID, True),
    ],
)
async def test_scale_of_scores(
    properties: ModelProperties,
    tokenizer: Tokenizer,
    activation: Activation,
    scale: ScoreScale,
    *,
    sigmoid: bool,
) -> None:
    """The sigmoid applies where it is requested or where the model's files ask for it."""
    logits = [[1000.0], [20.0], [1.5], [0.0], [-0.5], [-1.5], [-80.0], [-1000.0]]
    described = replace(properties, activation=activation)
    with (
        warnings.catch_warnings(),
        np.errstate(over="raise", divide="raise", invalid="raise"),
        cross_encoder(described, tokenizer, by_position(*logits)) as reranker,
    ):
        warnings.simplefilter("error")
        ranking = await reranker.rerank(
            "query",
            some_documents(len(logits)),
            replace(SPEC, scale=scale),
            CALL,
            documents_bytes=1,
        )
    assert ranking.scores.dtype == np.float32
    raw = np.array(logits)[:, 0]
    expected = np.exp(-np.logaddexp(0, -raw)) if sigmoid else raw
    np.testing.assert_allclose(ranking.scores, expected, rtol=1e-6, atol=1e-37)
    assert ranking.indices.tolist() == list(range(len(logits)))


async def test_cut_documents_are_told(properties: ModelProperties, tokenizer: Tokenizer) -> None:
    """A document over its own limit is cut, counted, and flagged at its rank."""
    spec = replace(SPEC, max_tokens=2)
    with cross_encoder(properties, tokenizer, by_position([1], [2])) as reranker:
        ranking = await reranker.rerank(
            "query", ["of the of the of", "of"], spec, CALL, documents_bytes=1
        )
    assert ranking.indices.tolist() == [1, 0]
    assert ranking.truncated.tolist() == [False, True]
    assert ranking.truncated_inputs == 1


async def test_document_that_may_not_be_cut(
    properties: ModelProperties, tokenizer: Tokenizer
) -> None:
    """The error names the document."""
    spec = replace(SPEC, max_tokens=2, truncation=Truncation.NONE)
    with (
        cross_encoder(properties, tokenizer, by_position()) as reranker,
        pytest.raises(InputTooLongError) as refused,
    ):
        await reranker.rerank("query", ["of", "of the of the of"], spec, CALL, documents_bytes=1)
    assert refused.value.field == "documents[1]"
    assert refused.value.metadata["maxTokens"] == "2"


async def test_similarity_is_the_cosine(properties: ModelProperties, tokenizer: Tokenizer) -> None:
    """Scores are cosines with the query, whatever the lengths of the vectors."""
    rows = by_position([3, 4], [-6, -8], [4, 3], [30, 40])
    with similarity(properties, tokenizer, rows) as reranker:
        ranking = await reranker.rerank("query", ["a", "b", "c"], SPEC, CALL, documents_bytes=1)
    assert ranking.indices.tolist() == [2, 1, 0]
    assert ranking.scores.tolist() == pytest.approx([1, 0.96, -1], abs=1e-6)


@pytest.mark.parametrize("zero", [0, 2])
async def test_zeros_have_no_cosine(
    properties: ModelProperties, tokenizer: Tokenizer, zero: int
) -> None:
    """The error for a vector of zeros names the field of its text."""
    rows = [[0.0, 0.0] if position == zero else [1.0, 0.0] for position in range(3)]
    with (
        similarity(properties, tokenizer, by_position(*rows)) as reranker,
        pytest.raises(NonFiniteOutputError) as failed,
    ):
        await reranker.rerank("query", ["a", "b"], SPEC, CALL, documents_bytes=1)
    assert failed.value.field == ("documents[1]" if zero else "query")


@pytest.mark.parametrize(
    ("query", "documents", "field"),
    [(" ", ["a", "b"], "query"), ("query", ["a", "\u200b"], "documents[1]")],
)
async def test_empty_texts_are_named(
    properties: ModelProperties, tokenizer: Tokenizer, query: str, documents: list[str], field: str
) -> None:
    """An empty query or document is refused before anything runs."""
    for make in (cross_encoder, similarity):
        with (
            make(properties, tokenizer, by_position()) as reranker,
            pytest.raises(EngineError) as refused,
        ):
            await reranker.rerank(query, documents, SPEC, CALL, documents_bytes=1)
        assert refused.value.field == field


async def test_prompts_go_in_front(properties: ModelProperties, tokenizer: Tokenizer) -> None:
    """The prompts of query and documents reach the model, and cost tokens."""
    spec = replace(SPEC, query_prompt="of the ", document_prompt="of ")
    with similarity(properties, tokenizer, lambda _: [1.0, 0.0]) as reranker:
        plain, prompted = await asyncio.gather(
            reranker.rerank("query", ["a", "b"], SPEC, CALL, documents_bytes=1),
            reranker.rerank("query", ["a", "b"], spec, CALL, documents_bytes=1),
        )
    prompts = tokenizer.encode(["of the query", "of a", "of b"])
    texts = tokenizer.encode(["query", "a", "b"])
    extra = sum(map(len, prompts)) - sum(map(len, texts))
    assert extra > 0
    assert prompted.input_tokens - plain.input_tokens == extra
