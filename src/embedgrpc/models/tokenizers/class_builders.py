"""Builds tokenizers of some classes from their vocabulary, without added tokens.

Source: the `tokenization_*.py` files of transformers 5.23.
"""

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece

from embedgrpc.models.tokenizers.vocabulary_file import VocabularyFile

_METASPACE = "\u2581"
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_albert(file: VocabularyFile) -> Tokenizer:
    """Build a unigram model that lowercases and drops accents as ALBERT does."""
    tokenizer = Tokenizer(Unigram(file.scores(), unk_id=1, byte_fallback=False))
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
    ]
    if not file.flag("keep_accents", default=False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if file.flag("do_lower_case", default=True):
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence([*steps, *file.table()])
    tokenizer.pre_tokenizer = _metaspace(file)
    return tokenizer


def build_word_piece(file: VocabularyFile) -> Tokenizer:
    """Build WordPiece as BERT does."""
    tokenizer = Tokenizer(WordPiece(file.ids(), unk_token=file.unk))
    accents = file.values.values.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=file.flag("tokenize_chinese_chars", default=True),
        strip_accents=None if accents is None else file.flag("strip_accents", default=False),
        lowercase=file.flag("do_lower_case", default=True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def build_byte_level(file: VocabularyFile) -> Tokenizer:
    """Build a BPE model of bytes as GPT-2 does."""
    tokenizer = Tokenizer(_byte_model(file))
    prefix = file.flag("add_prefix_space", default=False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return tokenizer


def build_qwen(file: VocabularyFile) -> Tokenizer:
    """Build a BPE model of bytes with the pre-tokenizer of Qwen."""
    tokenizer = Tokenizer(_byte_model(file))
    tokenizer.normalizer = normalizers.NFC()
    prefix = file.flag("add_prefix_space", default=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    return tokenizer


def _byte_model(file: VocabularyFile) -> BPE:
    return BPE(
        vocab=file.ids(),
        merges=file.merges(),
        continuing_subword_prefix="",
        end_of_word_suffix="",
        fuse_unk=False,
    )


def build_gemma(file: VocabularyFile) -> Tokenizer:
    """Build a BPE model of whole texts, whose blanks become marks."""
    model = BPE(
        vocab=file.ids(),
        merges=file.merges(),
        fuse_unk=True,
        unk_token=file.unk,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", _METASPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    return tokenizer


def build_llama(file: VocabularyFile) -> Tokenizer:
    """Build a BPE model of whole texts, with a mark in front."""
    model = BPE(vocab=file.ids(), merges=file.merges(), fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = file.flag("add_prefix_space", default=True)
    legacy = file.flag("legacy", default=False)
    scheme = ("always" if legacy else "first") if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_METASPACE, scheme, split=False)
    return tokenizer


def _build_sentence_piece(file: VocabularyFile, unk_id: int) -> Tokenizer:
    tokenizer = Tokenizer(Unigram(file.scores(), unk_id=unk_id, byte_fallback=False))
    for table in file.table():
        tokenizer.normalizer = table
    tokenizer.pre_tokenizer = _metaspace(file)
    return tokenizer


def build_xlmr(file: VocabularyFile) -> Tokenizer:
    """Build the unigram model of XLM-R."""
    return _build_sentence_piece(file, 3)


def build_t5(file: VocabularyFile) -> Tokenizer:
    """Build the unigram model of T5, which always puts a mark in front."""
    tokenizer = _build_sentence_piece(file, 2)
    tokenizer.pre_tokenizer = _split_blanks("always")
    return tokenizer


def build_camembert(file: VocabularyFile) -> Tokenizer:
    """Build the unigram model of CamemBERT, whose unknown token has no fixed place."""
    names = [token for token, _ in file.scores()]
    return _build_sentence_piece(file, names.index(file.unk) if file.unk in names else 0)


def _metaspace(file: VocabularyFile) -> pre_tokenizers.PreTokenizer:
    return _split_blanks("always" if file.flag("add_prefix_space", default=True) else "never")


def _split_blanks(scheme: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(_METASPACE, scheme)]
    )
