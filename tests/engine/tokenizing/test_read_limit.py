"""Limiting what is tokenized of a text does not change what the model reads."""

import queue
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedgrpc.engine.errors import EngineError
from embedgrpc.engine.tokenizing import jobs, threads
from embedgrpc.engine.tokenizing.jobs import (
    Pairing,
    ReadLimit,
    Tokenization,
    Tokenized,
    TokenizeResult,
)
from embedgrpc.engine.tokenizing.threads import TokenizingThreads
from embedgrpc.engine.work_class import WorkClass
from embedgrpc.models.folder.properties import read
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.engine.fakes import WAIT_S, unchecked
from tests.models.runner import FIXTURES

MODELS = ("cross-bert", "cross-xlmr", "cross-mpnet", "qwen3-last", "gemma-dense")
PAIRS = tuple(name for name in MODELS if name.startswith("cross"))
WORDS = st.sampled_from(
    [
        *("the", "cat", "internationalization", "\u4e2d\u56fd", "\u043c\u0438\u0440", "don't"),
        *("caf\u00e9", "a\u0301", ".", "\n", "[SEP]", "<mask>", "  ", "\u200b", "\u3002", "x" * 70),
    ]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=80).map(" ".join) | st.lists(WORDS).map("".join)
TRUNCATIONS = st.sampled_from([Truncation.END, Truncation.START])


class Tokens:
    """A model's tokenizer, used directly and on threads that tokenize no more than they must."""

    def __init__(self, name: str) -> None:
        files = resolve(str(FIXTURES / name))
        self.tokenizer = Tokenizer.load(read(files))
        self.threads = TokenizingThreads(self.tokenizer, threads=1, name=name)

    def read(self, texts: Sequence[str], read_limit: ReadLimit) -> list[Tokenized]:
        """Tokenize texts up to a limit."""
        told: queue.Queue[list[TokenizeResult] | EngineError] = queue.Queue()
        self.threads.submit(
            Tokenization(
                texts=texts,
                check=unchecked,
                work_class=WorkClass.INTERACTIVE,
                caller="",
                atomic=True,
                read_limit=read_limit,
                wanted=lambda: True,
                done=told.put,
                failed=told.put,
            )
        )
        results = told.get(timeout=WAIT_S)
        assert isinstance(results, list)
        return [one for one in results if isinstance(one, Tokenized)]


@pytest.fixture(scope="module", params=MODELS)
def tokens(request: pytest.FixtureRequest) -> Iterator[Tokens]:
    """Return the tokens of each kind of tokenizer."""
    made = Tokens(request.param)
    yield made
    made.threads.close()


@pytest.fixture(scope="module", params=PAIRS)
def pairs(request: pytest.FixtureRequest) -> Iterator[Tokens]:
    """Return the tokens of models that read pairs."""
    made = Tokens(request.param)
    yield made
    made.threads.close()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes pieces of any length, so that short examples have many."""
    monkeypatch.setattr(jobs, "_PIECE_CHARACTERS_MIN", 1)
    monkeypatch.setattr(jobs, "_PIECE_CHARACTERS_PER_TOKEN", 2)
    for module in (jobs, threads):
        monkeypatch.setattr(module, "SLICE_CHARACTERS", 64)


def same(first: TokenSequence, second: TokenSequence) -> bool:
    """Return whether two sequences are the same to the model and to the caller."""
    return (
        first.input_ids.tolist() == second.input_ids.tolist()
        and first.truncated == second.truncated
        and (first.token_type_ids is None) == (second.token_type_ids is None)
        and (
            first.token_type_ids is None
            or second.token_type_ids is None
            or first.token_type_ids.tolist() == second.token_type_ids.tolist()
        )
    )


EXAMPLES = pytest.mark.parametrize("examples", [120, pytest.param(500, marks=pytest.mark.slow)])


@EXAMPLES
def test_texts_read_in_part_are_the_same(tokens: Tokens, examples: int) -> None:
    """A text that is too long is cut to the same tokens, and reported as cut, either way."""
    build = tokens.tokenizer.build_sequence

    @given(texts=st.lists(TEXTS, min_size=1, max_size=4), limit=st.integers(3, 40), cut=TRUNCATIONS)
    @settings(max_examples=examples, deadline=None)
    def check(texts: list[str], limit: int, cut: Truncation) -> None:
        read_limit = ReadLimit(limit, from_end=cut is Truncation.START)
        for whole, part in zip(
            tokens.tokenizer.encode(texts), tokens.read(texts, read_limit), strict=True
        ):
            assert same(
                build(part.ids, max_tokens=limit, truncation=cut),
                build(whole, max_tokens=limit, truncation=cut),
            )

    check()


@EXAMPLES
def test_pairs_read_in_part_are_the_same(pairs: Tokens, examples: int) -> None:
    """Of a query and a document the longer is cut to the same tokens, even if both are long."""
    build = pairs.tokenizer.build_pair

    @given(
        query=TEXTS,
        documents=st.lists(TEXTS, min_size=1),
        limit=st.integers(5, 40),
        cut=TRUNCATIONS,
    )
    @settings(max_examples=examples, deadline=None)
    def check(query: str, documents: list[str], limit: int, cut: Truncation) -> None:
        from_end = cut is Truncation.START
        read_limit = ReadLimit(limit, from_end=from_end, pairing=Pairing.WITH_FIRST)
        texts = [query, *documents]
        first, *wholes = pairs.tokenizer.encode(texts)
        read_first, *parts = pairs.read(texts, read_limit)
        for whole, part in zip(wholes, parts, strict=True):
            assert same(
                build(read_first.ids, part.ids, max_tokens=limit, truncation=cut),
                build(first, whole, max_tokens=limit, truncation=cut),
            )

    check()
