"""Rebuilds a tokenizer as transformers 5 does for some classes.

Such a class takes the vocabulary, the merges and the table of replacements from `tokenizer.json`.
Its own normaliser, pre-tokenizer and mostly its own special tokens around a text take the place of
those in the file.

Source: the `tokenization_*.py` files of transformers 5.23.
"""

from dataclasses import dataclass, replace

from tokenizers import AddedToken, Tokenizer

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.tokenizers.added_tokens import (
    ROLES,
    Token,
    TokenizerSettings,
    add_tokens,
    text_of,
)
from embedgrpc.models.tokenizers.class_specials import wrap_bert, wrap_roberta
from embedgrpc.models.tokenizers.class_table import CLASSES
from embedgrpc.models.tokenizers.tokenizer_class import has_types, is_rebuilt
from embedgrpc.models.tokenizers.vocabulary_file import VocabularyFile, steps_of


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
    kind = CLASSES[settings.class_name]
    roles: dict[str, Token | None] = {
        role: settings.roles.get(role, kind.roles.get(role))
        for role in ROLES
        if role in settings.roles or role in kind.roles
    }
    roles |= {role: token for role, token in settings.roles.items() if role not in roles}
    if settings.class_name == "MPNetTokenizer":
        roles = {role: _plain(role, token) for role, token in roles.items()}
    own = kind.build(VocabularyFile(content, settings.values, text_of(roles.get("unk_token"))))
    if tokenizer.post_processor is not None:
        own.post_processor = tokenizer.post_processor
    added = add_tokens(own, replace(settings, roles=roles), pad_token=pad)
    if settings.class_name == "Qwen2Tokenizer":
        # The class adds them again, without their properties.
        names = [text_of(token) for token in (*roles.values(), *settings.extra) if token]
        own.add_tokens([AddedToken(name, special=True) for name in dict.fromkeys(names)])
    if kind.wrap is not None:
        kind.wrap(own, roles)
    if settings.class_name in ("MPNetTokenizer", "RobertaTokenizer"):
        wrap_roberta(own, roles, settings)
    elif own.post_processor is None and settings.class_name == "AlbertTokenizer":
        wrap_bert(own, roles)
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return Rebuilt(own, [one for one in added if one not in present], types)


def _is_byte_level(class_name: str, content: JsonObject) -> bool:
    """Return whether the class does not fit the file, which then counts."""
    steps = content.values.get("pre_tokenizer"), content.values.get("decoder")
    kinds = {step.get("type") for part in steps for step in steps_of(part)}
    return class_name == "LlamaTokenizer" and "ByteLevel" in kinds


def _plain(role: str, token: Token | None) -> Token | None:
    if not isinstance(token, str) or role not in ROLES:
        return token
    return AddedToken(token, lstrip=role == "mask_token", rstrip=False)
