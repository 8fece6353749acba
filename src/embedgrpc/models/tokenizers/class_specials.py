"""Sets the special tokens that some classes put around texts.

Source: the `tokenization_*.py` files of transformers 5.23.
"""

from collections.abc import Mapping

from tokenizers import Tokenizer, processors

from embedgrpc.models.tokenizers.added_tokens import Token, TokenizerSettings, text_of


def wrap_bert(tokenizer: Tokenizer, roles: Mapping[str, Token | None]) -> None:
    """Put `[CLS]` in front, and `[SEP]` behind each text; the second text has type 1."""
    cls, sep = text_of(roles["cls_token"]), text_of(roles["sep_token"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(token, _id(tokenizer, token)) for token in sorted({cls, sep})],
    )


def wrap_roberta(
    tokenizer: Tokenizer, roles: Mapping[str, Token | None], settings: TokenizerSettings
) -> None:
    """Put `<s>` in front, `</s>` behind, and two of it between the texts of a pair."""
    cls, sep = text_of(roles["cls_token"]), text_of(roles["sep_token"])
    # These only move the places of tokens in a text.
    trim, prefix = True, False
    if settings.class_name == "RobertaTokenizer":
        trim = settings.values.flag("trim_offsets", default=trim)
        prefix = settings.values.flag("add_prefix_space", default=prefix)
    tokenizer.post_processor = processors.RobertaProcessing(
        (sep, _id(tokenizer, sep)), (cls, _id(tokenizer, cls)), trim, prefix
    )


def wrap_xlmr(tokenizer: Tokenizer, roles: Mapping[str, Token | None]) -> None:
    """Put the first token in front, the last behind, and two of it between texts."""
    bos, eos = text_of(roles["bos_token"]), text_of(roles["eos_token"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[(token, _id(tokenizer, token)) for token in sorted({bos, eos})],
    )


def wrap_t5(tokenizer: Tokenizer, roles: Mapping[str, Token | None]) -> None:
    """Put `</s>` behind each text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"],
        pair=["$A", "</s>", "$B", "</s>"],
        special_tokens=[("</s>", _id(tokenizer, text_of(roles["eos_token"])))],
    )


def _id(tokenizer: Tokenizer, token: str) -> int:
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"{token!r} is not in the vocabulary")
    return token_id
