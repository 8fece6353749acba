import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import read
from embedgrpc.models.kinds import Truncation
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.token_sequence import TokenSequence
from embedgrpc.models.tokenizers.tokenizer import Tokenizer, cut_tokens
from embedgrpc.models.tokenizers.truncation import TokenLimitError
from tests.models.runner import FIXTURES, Runner, copy_fixture, edit_json

DIRECTIONS = {Truncation.END: "right", Truncation.START: "left"}
TEXTS = st.text(alphabet="abc xyz1.\u4e00", max_size=80)


def _load(folder: Path, *, escape_special_tokens: bool = False) -> Tokenizer:
    files = resolve(str(folder))
    return Tokenizer.load(read(files), escape_special_tokens=escape_special_tokens)


@pytest.fixture(scope="module", params=["cross-bert", "cross-xlmr"])
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Our tokenizer and the library's own, of one model."""
    folder = FIXTURES / request.param
    return _load(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def _assert_equal(sequence: TokenSequence, encoding: tokenizers.Encoding) -> None:
    assert sequence.input_ids.tolist() == encoding.ids
    types = sequence.token_type_ids
    assert (types.tolist() if types is not None else [0] * len(encoding.ids)) == encoding.type_ids


@given(text=TEXTS, max_tokens=st.integers(3, 40), truncation=st.sampled_from(sorted(DIRECTIONS)))
@settings(max_examples=150, deadline=None)
def test_sequences_equal_those_of_the_library(
    both: tuple[Tokenizer, tokenizers.Tokenizer],
    text: str,
    max_tokens: int,
    truncation: Truncation,
) -> None:
    """Special tokens and truncation of a text are those of the tokenizers library."""
    ours, theirs = both
    theirs.no_truncation()
    whole = len(theirs.encode(text).ids)
    theirs.enable_truncation(max_tokens, direction=DIRECTIONS[truncation])
    sequence = ours.build_sequence(
        ours.encode([text])[0], max_tokens=max_tokens, truncation=truncation
    )
    _assert_equal(sequence, theirs.encode(text))
    assert sequence.token_count_before == whole
    assert sequence.truncated == (whole > max_tokens)


@given(
    query=TEXTS,
    document=TEXTS,
    max_tokens=st.integers(4, 60),
    truncation=st.sampled_from(sorted(DIRECTIONS)),
)
@settings(max_examples=300, deadline=None)
def test_pairs_equal_those_of_the_library(
    both: tuple[Tokenizer, tokenizers.Tokenizer],
    query: str,
    document: str,
    max_tokens: int,
    truncation: Truncation,
) -> None:
    """Special tokens, type ids and truncation of a pair are those of the tokenizers library."""
    ours, theirs = both
    theirs.no_truncation()
    whole = len(theirs.encode(query, document).ids)
    theirs.enable_truncation(max_tokens, strategy="longest_first", direction=DIRECTIONS[truncation])
    first, second = ours.encode([query, document])
    sequence = ours.build_pair(first, second, max_tokens=max_tokens, truncation=truncation)
    _assert_equal(sequence, theirs.encode(query, document))
    assert sequence.token_count_before == whole


def test_too_long_is_an_error_without_truncation() -> None:
    """Without truncation, the error has both numbers, and an exact fit is no error."""
    tokenizer = _load(FIXTURES / "cross-bert")
    ids = np.arange(5, 15)
    assert not tokenizer.build_sequence(ids, max_tokens=12, truncation=Truncation.NONE).truncated
    with pytest.raises(TokenLimitError) as caught:
        tokenizer.build_sequence(ids, max_tokens=11, truncation=Truncation.NONE)
    assert (caught.value.token_count, caught.value.max_tokens) == (12, 11)
    with pytest.raises(TokenLimitError, match="13 tokens are more than the 12 allowed"):
        tokenizer.build_pair(ids[:5], ids[:5], max_tokens=12, truncation=Truncation.NONE)


def test_an_exact_fit_is_whole() -> None:
    """A pair, or a part of one, of exactly the limit is not truncated."""
    tokenizer = _load(FIXTURES / "cross-bert")
    ids = np.arange(5, 10)
    for truncation in Truncation:
        pair = tokenizer.build_pair(ids, ids, max_tokens=13, truncation=truncation)
        assert (len(pair.input_ids), pair.truncated) == (13, False)
        assert cut_tokens(ids, 5, truncation).tolist() == ids.tolist()
    with pytest.raises(TokenLimitError):
        cut_tokens(ids, 4, Truncation.NONE)
    assert cut_tokens(ids, 4, Truncation.END).tolist() == ids[:4].tolist()
    assert cut_tokens(ids, 4, Truncation.START).tolist() == ids[1:].tolist()
    # A limit that fits only the special tokens is allowed.
    empty = tokenizer.build_sequence(ids, max_tokens=2, truncation=Truncation.END)
    assert (len(empty.input_ids), empty.truncated) == (2, True)
    nothing = tokenizer.build_pair(ids, ids, max_tokens=3, truncation=Truncation.END)
    assert len(nothing.input_ids) == 3


def test_no_room_for_special_tokens_is_an_error() -> None:
    """A limit below the number of special tokens is an error."""
    tokenizer = _load(FIXTURES / "cross-bert")
    nothing = np.arange(0)
    with pytest.raises(TokenLimitError):
        tokenizer.build_sequence(nothing, max_tokens=1, truncation=Truncation.END)
    with pytest.raises(TokenLimitError):
        tokenizer.build_pair(nothing, nothing, max_tokens=2, truncation=Truncation.START)


def test_an_embedding_model_does_not_accept_pairs(bert_mean: Runner) -> None:
    """Only cross-encoders accept pairs."""
    with pytest.raises(ValueError, match="does not accept pairs"):
        bert_mean.tokenizer.build_pair(
            np.arange(2), np.arange(2), max_tokens=9, truncation=Truncation.END
        )


def test_special_tokens_in_a_text() -> None:
    """A special token's name in a text is that token by default, and plain text if escaped."""
    folder = FIXTURES / "bert-mean"
    separator = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("[SEP]")
    taken = _load(folder).encode(["a [SEP] b"])[0]
    escaped = _load(folder, escape_special_tokens=True).encode(["a [SEP] b"])[0]
    assert taken.tolist().count(separator) == 1
    assert escaped.tolist().count(separator) == 0
    assert len(escaped) > len(taken)


def test_threads_may_share_a_tokenizer(bert_mean: Runner) -> None:
    """Many threads at once get the same tokens as one."""
    texts = [f"text number {number} of many" * (number % 7 + 1) for number in range(64)]
    alone = [ids.tolist() for ids in bert_mean.tokenizer.encode(texts)]

    def encode(_: int) -> list[list[int]]:
        return [ids.tolist() for ids in bert_mean.tokenizer.encode(texts)]

    with ThreadPoolExecutor(8) as pool:
        assert all(result == alone for result in pool.map(encode, range(32)))


def test_lowercasing_of_sentence_transformers(tmp_path: Path) -> None:
    """`do_lower_case` lowercases texts if the tokenizer does not."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.save(str(folder / "tokenizer.json"))
    cased = _load(folder).encode(["The Words"])[0].tolist()
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    small, upper = _load(folder).encode(["the words", "The Words"])
    assert upper.tolist() == small.tolist()
    assert upper.tolist() != cased


@pytest.mark.parametrize("tokenizer_class", ["BertTokenizer", "BertTokenizerFast", None])
def test_the_settings_of_a_bert_tokenizer_win(tmp_path: Path, tokenizer_class: str | None) -> None:
    """Case and accents follow `tokenizer_config.json` and its defaults."""
    folder = copy_fixture("bert-mean", tmp_path)
    config = folder / "tokenizer_config.json"
    edit_json(config, tokenizer_class=tokenizer_class, do_lower_case=None, strip_accents=None)
    capitals, small = _load(folder).encode(["The T\u00f6wer", "the tower"])
    assert capitals.tolist() == small.tolist()
    edit_json(config, do_lower_case=False)
    cased, small_again = _load(folder).encode(["The T\u00f6wer", "the tower"])
    assert small_again.tolist() == small.tolist()
    assert cased.tolist() != small.tolist()
    # A class takes nothing but the vocabulary.
    _set_normalizer(folder, lowercase=False)
    edit_json(folder / "tokenizer.json", pre_tokenizer=None, post_processor=None)
    edit_json(config, do_lower_case=True)
    assert _load(folder).encode(["The T\u00f6wer"])[0].tolist() == small.tolist()


def test_a_tokenizer_of_a_general_class_has_its_own_settings(tmp_path: Path) -> None:
    """For a general class, only `tokenizer.json` counts."""
    folder = copy_fixture("bert-mean", tmp_path)
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        do_lower_case=False,
    )
    capitals, small = _load(folder).encode(["The Tower", "the tower"])
    assert capitals.tolist() == small.tolist()
    _set_normalizer(folder, lowercase=False)
    edit_json(folder / "tokenizer_config.json", do_lower_case=True)
    capitals, small = _load(folder).encode(["The Tower", "the tower"])
    assert capitals.tolist() != small.tolist()


def test_the_leading_space_of_a_roberta_tokenizer(tmp_path: Path) -> None:
    """`add_prefix_space` of `tokenizer_config.json` wins over that of `tokenizer.json`."""
    folder = copy_fixture("roberta-mean", tmp_path)
    bare, spaced = _load(folder).encode(["tower", " tower"])
    assert bare.tolist() != spaced.tolist()
    edit_json(folder / "tokenizer_config.json", add_prefix_space=True)
    assert _load(folder).encode(["tower"])[0].tolist() == spaced.tolist()


def _set_normalizer(folder: Path, **changes: bool) -> None:
    path = folder / "tokenizer.json"
    normalizer = json.loads(path.read_text())["normalizer"]
    edit_json(path, normalizer=normalizer | changes)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    """The error names the missing file."""
    folder = copy_fixture("roberta-mean", tmp_path, leave_out=["tokenizer.json"])
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing; .* python -c "):
        _load(folder)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    """The error names the broken file."""
    folder = copy_fixture("bert-mean", tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        _load(folder)


def test_an_odd_post_processor_is_refused(tmp_path: Path) -> None:
    """A model whose special tokens around a pair vary is refused."""
    folder = copy_fixture("cross-bert", tmp_path)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$B [SEP] $A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"tokenizer\.json: post_processor is not supported"):
        _load(folder)


@pytest.mark.parametrize(
    ("name", "collapses"),
    [
        ("bert-mean", True),
        ("xlmr-metaspace", True),
        ("roberta-mean", False),
        ("qwen3-last", False),
        ("gemma-dense", False),
    ],
)
def test_which_tokenizers_drop_blanks(name: str, collapses: bool) -> None:  # noqa: FBT001 - a case
    """Those that split at blanks take several for one; the others have tokens for them."""
    tokenizer = _load(FIXTURES / name)
    assert tokenizer.collapses_blanks is collapses
    many, one = tokenizer.encode(["a  \t\n  b", "a b"])
    assert (many.tolist() == one.tolist()) is collapses
