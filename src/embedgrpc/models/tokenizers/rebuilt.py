"""Rebuilds a tokenizer as transformers 5 does for some classes.

Such a class takes the vocabulary, the merges and the table of replacements from `tokenizer.json`.
Its own normaliser, pre-tokenizer and mostly its own special tokens around a text take the place of
those in the file.

Source: the `tokenization_*.py` files of transformers 5.23.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.tokenizers.added_tokens import (
    ROLES,
    Token,
    TokenizerSettings,
    add_tokens,
)
from embedgrpc.models.tokenizers.tokenizer_class import has_types, is_rebuilt

_METASPACE = "\u2581"
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The normaliser's table may be one step of several.
_TABLE = "precompiled_charsmap"


@dataclass(frozen=True, slots=True)
class _File:
    """What a class takes from the files.

    Attributes:
        tokenizer: `tokenizer.json`.
        values: The settings of `tokenizer_config.json`.
        unk: The unknown token.
    """

    tokenizer: JsonObject
    values: JsonObject
    unk: str

    @property
    def model(self) -> JsonObject:
        return JsonObject(self.tokenizer.path, self.tokenizer.table("model"))

    def flag(self, key: str, *, default: bool) -> bool:
        return self.values.flag(key, default=default)

    def scores(self) -> list[tuple[str, float]]:
        """Return the vocabulary of a unigram model."""
        entries = self.model.values.get("vocab")
        if not isinstance(entries, list):
            raise self.tokenizer.wrong("model.vocab", "pairs of token and score")
        return [(token, score) for token, score in entries]

    def ids(self) -> dict[str, int]:
        """Return the vocabulary of any other model."""
        entries = self.model.values.get("vocab")
        if isinstance(entries, list):
            return {
                (one[0] if isinstance(one, list) else one): index
                for index, one in enumerate(entries)
            }
        if not isinstance(entries, dict):
            raise self.tokenizer.wrong("model.vocab", "an object of tokens and their ids")
        return entries

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges of a BPE model."""
        merges = self.model.values.get("merges")
        if not isinstance(merges, list):
            raise self.tokenizer.wrong("model.merges", "a list of merges")
        split = [one.split(" ") if isinstance(one, str) else one for one in merges]
        return [(first, second) for first, second in split]

    def table(self) -> list[normalizers.Normalizer]:
        """Return the step with the table of replacements, if there is one."""
        normalizer = self.tokenizer.values.get("normalizer")
        for step in _steps(normalizer):
            if step.get("type") == "Precompiled" and isinstance(step.get(_TABLE), str):
                return [normalizers.Precompiled(base64.b64decode(step[_TABLE]))]
        return []


@dataclass(frozen=True, slots=True)
class _Class:
    """How a class rebuilds its tokenizer.

    Attributes:
        build: Builds it, without added tokens.
        roles: The tokens of the roles that no file names.
        wrap: Sets the special tokens around texts, if the class has its own.
    """

    build: Callable[[_File], Tokenizer]
    roles: Mapping[str, Token | None]
    wrap: Callable[[Tokenizer, Mapping[str, Token | None]], None] | None = None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A tokenizer as the reference has it.

    Attributes:
        tokenizer: The tokenizer.
        added: The tokens that `tokenizer.json` lacks.
        has_types: Whether the model receives token types.
    """

    tokenizer: Tokenizer
    added: list[str]
    has_types: bool


def complete(
    tokenizer: Tokenizer, content: JsonObject | None, settings: TokenizerSettings
) -> Rebuilt:
    """Return the tokenizer as the reference has it, with all added tokens.

    Args:
        tokenizer: Loaded from `tokenizer.json`, and changed unless its class is rebuilt.
        content: `tokenizer.json`; only needed if the class is rebuilt.
        settings: The settings of the other files.

    Raises:
        ModelError: A file lacks what the class needs.
        Exception: The tokenizers library refuses a part.
    """
    settings = settings.complete(tokenizer.get_added_tokens_decoder())
    types = has_types(settings.class_name)
    pad = tokenizer.padding["pad_token"] if tokenizer.padding else None
    if (
        not is_rebuilt(settings.class_name)
        or content is None
        or _is_byte_level(settings.class_name, content)
    ):
        return Rebuilt(tokenizer, add_tokens(tokenizer, settings, pad_token=pad), types)
    kind = _CLASSES[settings.class_name]
    roles: dict[str, Token | None] = {
        role: settings.roles.get(role, kind.roles.get(role))
        for role in ROLES
        if role in settings.roles or role in kind.roles
    }
    roles |= {role: token for role, token in settings.roles.items() if role not in roles}
    if settings.class_name == "MPNetTokenizer":
        roles = {role: _plain(role, token) for role, token in roles.items()}
    own = kind.build(_File(content, settings.values, _text(roles.get("unk_token"))))
    if tokenizer.post_processor is not None:
        own.post_processor = tokenizer.post_processor
    added = add_tokens(own, replace(settings, roles=roles), pad_token=pad)
    if settings.class_name == "Qwen2Tokenizer":
        # The class adds them again, without their properties.
        names = [_text(token) for token in (*roles.values(), *settings.extra) if token]
        own.add_tokens([AddedToken(name, special=True) for name in dict.fromkeys(names)])
    if kind.wrap is not None:
        kind.wrap(own, roles)
    if settings.class_name in ("MPNetTokenizer", "RobertaTokenizer"):
        _wrap_roberta(own, roles, settings)
    elif own.post_processor is None and settings.class_name == "AlbertTokenizer":
        _wrap_bert(own, roles)
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return Rebuilt(own, [one for one in added if one not in present], types)


def _is_byte_level(class_name: str, content: JsonObject) -> bool:
    """Return whether the class does not fit the file, which then counts."""
    steps = content.values.get("pre_tokenizer"), content.values.get("decoder")
    kinds = {step.get("type") for part in steps for step in _steps(part)}
    return class_name == "LlamaTokenizer" and "ByteLevel" in kinds


def _steps(part: object) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normaliser or pre-tokenizer, one level deep as the reference does."""
    if not isinstance(part, dict):
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(part.get(key), list):
            yield from (step for step in part[key] if isinstance(step, dict))
            return
    yield part


def _text(token: Token | None) -> str:
    return token.content if isinstance(token, AddedToken) else str(token)


def _plain(role: str, token: Token | None) -> Token | None:
    if not isinstance(token, str) or role not in ROLES:
        return token
    return AddedToken(token, lstrip=role == "mask_token", rstrip=False)


def _build_albert(file: _File) -> Tokenizer:
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


def _build_word_piece(file: _File) -> Tokenizer:
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


def _build_byte_level(file: _File) -> Tokenizer:
    model = BPE(
        vocab=file.ids(),
        merges=file.merges(),
        continuing_subword_prefix="",
        end_of_word_suffix="",
        fuse_unk=False,
    )
    tokenizer = Tokenizer(model)
    prefix = file.flag("add_prefix_space", default=False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return tokenizer


def _build_qwen(file: _File) -> Tokenizer:
    model = BPE(
        vocab=file.ids(),
        merges=file.merges(),
        continuing_subword_prefix="",
        end_of_word_suffix="",
        fuse_unk=False,
        byte_fallback=False,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    prefix = file.flag("add_prefix_space", default=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    return tokenizer


def _build_gemma(file: _File) -> Tokenizer:
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


def _build_llama(file: _File) -> Tokenizer:
    model = BPE(vocab=file.ids(), merges=file.merges(), fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = file.flag("add_prefix_space", default=True)
    legacy = file.flag("legacy", default=False)
    scheme = ("always" if legacy else "first") if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_METASPACE, scheme, split=False)
    return tokenizer


def _build_sentence_piece(file: _File, unk_id: int) -> Tokenizer:
    tokenizer = Tokenizer(Unigram(file.scores(), unk_id=unk_id, byte_fallback=False))
    for table in file.table():
        tokenizer.normalizer = table
    tokenizer.pre_tokenizer = _metaspace(file)
    return tokenizer


def _build_xlmr(file: _File) -> Tokenizer:
    return _build_sentence_piece(file, 3)


def _build_t5(file: _File) -> Tokenizer:
    tokenizer = _build_sentence_piece(file, 2)
    tokenizer.pre_tokenizer = _split_blanks("always")
    return tokenizer


def _build_camembert(file: _File) -> Tokenizer:
    names = [token for token, _ in file.scores()]
    return _build_sentence_piece(file, names.index(file.unk) if file.unk in names else 0)


def _metaspace(file: _File) -> pre_tokenizers.PreTokenizer:
    return _split_blanks("always" if file.flag("add_prefix_space", default=True) else "never")


def _split_blanks(scheme: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(_METASPACE, scheme)]
    )


def _wrap_bert(tokenizer: Tokenizer, roles: Mapping[str, Token | None]) -> None:
    cls, sep = _text(roles["cls_token"]), _text(roles["sep_token"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(token, _id(tokenizer, token)) for token in sorted({cls, sep})],
    )


def _wrap_roberta(
    tokenizer: Tokenizer, roles: Mapping[str, Token | None], settings: TokenizerSettings
) -> None:
    cls, sep = _text(roles["cls_token"]), _text(roles["sep_token"])
    # These only move the places of tokens in a text.
    trim, prefix = True, False
    if settings.class_name == "RobertaTokenizer":
        trim = settings.values.flag("trim_offsets", default=trim)
        prefix = settings.values.flag("add_prefix_space", default=prefix)
    tokenizer.post_processor = processors.RobertaProcessing(
        (sep, _id(tokenizer, sep)), (cls, _id(tokenizer, cls)), trim, prefix
    )


def _wrap_xlmr(tokenizer: Tokenizer, roles: Mapping[str, Token | None]) -> None:
    bos, eos = _text(roles["bos_token"]), _text(roles["eos_token"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[(token, _id(tokenizer, token)) for token in sorted({bos, eos})],
    )


def _wrap_t5(tokenizer: Tokenizer, roles: Mapping[str, Token | None]) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"],
        pair=["$A", "</s>", "$B", "</s>"],
        special_tokens=[("</s>", _id(tokenizer, _text(roles["eos_token"])))],
    )


def _id(tokenizer: Tokenizer, token: str) -> int:
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"{token!r} is not in the vocabulary")
    return token_id


def _roles(description: str) -> dict[str, Token]:
    """Read "ROLE=TOKEN ..."."""
    pairs = (one.split("=", 1) for one in description.split())
    return {f"{role}_token": token for role, token in pairs}


_XLMR = _roles("bos=<s> eos=</s> unk=<unk> sep=</s> pad=<pad> cls=<s> mask=<mask>")
_BERT = _roles("unk=[UNK] sep=[SEP] pad=[PAD] cls=[CLS] mask=[MASK]")
_GPT2 = _roles("bos=<|endoftext|> eos=<|endoftext|> unk=<|endoftext|>")
_CLASSES = {
    "AlbertTokenizer": _Class(
        _build_albert,
        _roles("bos=[CLS] eos=[SEP] unk=<unk> sep=[SEP] pad=<pad> cls=[CLS] mask=[MASK]"),
    ),
    "BertTokenizer": _Class(
        _build_word_piece,
        _BERT,
        _wrap_bert,
    ),
    "DistilBertTokenizer": _Class(
        _build_word_piece,
        _BERT,
        _wrap_bert,
    ),
    "CamembertTokenizer": _Class(
        _build_camembert,
        {**_XLMR, "mask_token": AddedToken("<mask>", lstrip=True, special=True)},
        _wrap_xlmr,
    ),
    "GPT2Tokenizer": _Class(_build_byte_level, {**_GPT2, "pad_token": None}),
    "GemmaTokenizer": _Class(
        _build_gemma, _roles("unk=<unk> bos=<bos> eos=<eos> pad=<pad> mask=<mask>")
    ),
    "LlamaTokenizer": _Class(_build_llama, _roles("bos=<s> eos=</s> unk=<unk>")),
    "MPNetTokenizer": _Class(_build_word_piece, {**_XLMR, "unk_token": "[UNK]"}),
    "Qwen2Tokenizer": _Class(
        _build_qwen, _roles("eos=<|endoftext|> unk=<|endoftext|> pad=<|endoftext|>")
    ),
    "RobertaTokenizer": _Class(_build_byte_level, _XLMR),
    "T5Tokenizer": _Class(_build_t5, _roles("eos=</s> unk=<unk> pad=<pad>"), _wrap_t5),
    "XLMRobertaTokenizer": _Class(_build_xlmr, _XLMR, _wrap_xlmr),
}
