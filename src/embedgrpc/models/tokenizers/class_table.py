"""The classes whose tokenizers transformers 5 rebuilds, and what each of them does.

Source: the `tokenization_*.py` files of transformers 5.23.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from embedgrpc.models.tokenizers.added_tokens import Token
from embedgrpc.models.tokenizers.class_builders import (
    build_albert,
    build_byte_level,
    build_camembert,
    build_gemma,
    build_llama,
    build_qwen,
    build_t5,
    build_word_piece,
    build_xlmr,
)
from embedgrpc.models.tokenizers.class_specials import wrap_bert, wrap_t5, wrap_xlmr
from embedgrpc.models.tokenizers.vocabulary_file import VocabularyFile


@dataclass(frozen=True, slots=True)
class RebuiltClass:
    """How a class rebuilds its tokenizer.

    Attributes:
        build: Builds it, without added tokens.
        roles: The tokens of the roles that no file names.
        wrap: Sets the special tokens around texts, if the class has its own.
    """

    build: Callable[[VocabularyFile], Tokenizer]
    roles: Mapping[str, Token | None]
    wrap: Callable[[Tokenizer, Mapping[str, Token | None]], None] | None = None


def _roles(description: str) -> dict[str, Token]:
    """Read "ROLE=TOKEN ..."."""
    pairs = (one.split("=", 1) for one in description.split())
    return {f"{role}_token": token for role, token in pairs}


_XLMR = _roles("bos=<s> eos=</s> unk=<unk> sep=</s> pad=<pad> cls=<s> mask=<mask>")
_GPT2 = _roles("bos=<|endoftext|> eos=<|endoftext|> unk=<|endoftext|>")
_BERT = RebuiltClass(
    build_word_piece, _roles("unk=[UNK] sep=[SEP] pad=[PAD] cls=[CLS] mask=[MASK]"), wrap_bert
)
CLASSES = {
    "AlbertTokenizer": RebuiltClass(
        build_albert,
        _roles("bos=[CLS] eos=[SEP] unk=<unk> sep=[SEP] pad=<pad> cls=[CLS] mask=[MASK]"),
    ),
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "CamembertTokenizer": RebuiltClass(
        build_camembert,
        {**_XLMR, "mask_token": AddedToken("<mask>", lstrip=True, special=True)},
        wrap_xlmr,
    ),
    "GPT2Tokenizer": RebuiltClass(build_byte_level, {**_GPT2, "pad_token": None}),
    "GemmaTokenizer": RebuiltClass(
        build_gemma, _roles("unk=<unk> bos=<bos> eos=<eos> pad=<pad> mask=<mask>")
    ),
    "LlamaTokenizer": RebuiltClass(build_llama, _roles("bos=<s> eos=</s> unk=<unk>")),
    "MPNetTokenizer": RebuiltClass(build_word_piece, {**_XLMR, "unk_token": "[UNK]"}),
    "Qwen2Tokenizer": RebuiltClass(
        build_qwen, _roles("eos=<|endoftext|> unk=<|endoftext|> pad=<|endoftext|>")
    ),
    "RobertaTokenizer": RebuiltClass(build_byte_level, _XLMR),
    "T5Tokenizer": RebuiltClass(build_t5, _roles("eos=</s> unk=<unk> pad=<pad>"), wrap_t5),
    "XLMRobertaTokenizer": RebuiltClass(build_xlmr, _XLMR, wrap_xlmr),
}
# A vocabulary is all that these need.
WORD_PIECE_CLASSES = frozenset(
    name for name, kind in CLASSES.items() if kind.build is build_word_piece
)
