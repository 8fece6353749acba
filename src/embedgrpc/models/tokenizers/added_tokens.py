"""Reads the special and added tokens that a model's files name, besides `tokenizer.json`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.tokenizers.tokenizer_class import choose_class

# A token with its properties, or only its text.
Token = str | tokenizers.AddedToken

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = "extra_special_tokens"
_OLD_EXTRA = "additional_special_tokens"
_T5_EXTRA_IDS = 100
# Real models have 100 to 300.
_T5_EXTRA_IDS_MAX = 10_000
_PROPERTIES = frozenset({"content", "single_word", "lstrip", "rstrip", "normalized", "special"})


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """What a model's files say about its tokenizer, besides `tokenizer.json`.

    Attributes:
        class_name: The class, or `GENERAL`.
        values: `tokenizer_config.json`, completed by `special_tokens_map.json`.
        roles: The token of each role, such as `cls_token`, in the order in which tokens are added;
            None if a file says that there is none.
        extra: Further special tokens.
        added: Added tokens by id. The ids only set the order: a token's own id is that of the
            vocabulary, or the next free one.
    """

    class_name: str
    values: JsonObject
    roles: Mapping[str, Token | None]
    extra: tuple[Token, ...]
    added: Mapping[int, tokenizers.AddedToken]

    @property
    def split_special_tokens(self) -> bool:
        """Whether the name of a special token in a text is plain characters."""
        return self.values.flag("split_special_tokens", default=False)

    def complete(self, own: Mapping[int, tokenizers.AddedToken]) -> "TokenizerSettings":
        """Return the settings with the properties of all added tokens.

        Args:
            own: The added tokens of `tokenizer.json` by id. They count if no file has
                `added_tokens_decoder`.
        """
        added = (
            self.added if "added_tokens_decoder" in self.values.values else {**self.added, **own}
        )
        by_text = {token.content: token for token in added.values()}
        roles = {
            role: by_text.get(text_of(token), token) if role in ROLES and token else token
            for role, token in self.roles.items()
        }
        return replace(self, added=added, roles=roles)

    def names(self) -> Mapping[str, str]:
        """Return the text of the token of each role."""
        return {role: text_of(token) for role, token in self.roles.items() if token}

    def describe(self) -> Mapping[str, Any]:
        """Return all that changes tokens as JSON values."""
        return {
            "class": self.class_name,
            "roles": {role: _state(token) for role, token in self.roles.items()},
            "extra": [_state(token) for token in self.extra],
            "added": {str(index): _state(token) for index, token in self.added.items()},
            "values": {
                key: value
                for key, value in self.values.values.items()
                if isinstance(value, bool) and not key.startswith("clean_up_")
            },
        }


def read_tokenizer_settings(folder: Path, root: Path) -> TokenizerSettings:
    """Read the settings of the tokenizer in the backbone's folder.

    Raises:
        ModelError: A file cannot be read, or names something that is no token.

    Source: transformers' `PreTrainedTokenizerBase._from_pretrained`.
    """
    config = JsonObject.read_if_present(folder / "config.json", root)
    tokenizer_config = JsonObject.read_if_present(folder / "tokenizer_config.json", root)
    class_name = choose_class(config, tokenizer_config)
    values = dict(tokenizer_config.values)
    if _OLD_EXTRA in values and not values.get(_EXTRA):
        values[_EXTRA] = values.pop(_OLD_EXTRA)
    # Tokens of further roles, such as `image_token`.
    further = {key: values.pop(key) for key in list(values) if _is_further_role(key, values[key])}
    if isinstance(values.get(_EXTRA), dict):
        further |= values.pop(_EXTRA)
    added: dict[int, tokenizers.AddedToken] = {}
    if "added_tokens_decoder" in values:
        for index, token in tokenizer_config.table("added_tokens_decoder").items():
            key = f"added_tokens_decoder.{index}"
            if not index.isdecimal():
                raise tokenizer_config.wrong(key, "a token by its id")
            added[int(index)] = _read_token(tokenizer_config, key, token)
    else:
        _complete(values, further, JsonObject.read_if_present(_map_path(folder), root))
        added |= _read_older(values, JsonObject.read_if_present(folder / "added_tokens.json", root))
    return _combine(class_name, JsonObject(tokenizer_config.path, values), further, added)


def add_tokens(
    tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings, *, pad_token: str | None
) -> list[str]:
    """Add the tokens of the settings that a tokenizer lacks; return the added ones.

    Args:
        tokenizer: The tokenizer.
        settings: The settings.
        pad_token: The padding token that `tokenizer.json` names.

    Source: transformers' `TokenizersBackend.__init__`.
    """
    roles = {"pad_token": pad_token, **settings.roles}
    roles = {role: roles.get(role) for role in (*ROLES, *roles)}
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    # A token that the tokenizer has gets the properties that are named here.
    missing: list[Token] = [token for _, token in sorted(settings.added.items())]
    seen = present | {text_of(token) for token in missing}
    for token in (*roles.values(), *settings.extra):
        if token is not None and text_of(token) not in seen and token not in missing:
            missing.append(token)
    names = {text_of(token) for token in roles.values() if token}
    new = []
    for token in missing:
        one = tokenizers.AddedToken(token, special=True) if isinstance(token, str) else token
        if not one.special and one.content in names:
            one.special = True
        new.append(one)
    tokenizer.add_tokens(new)
    return [token.content for token in new if token.content not in present]


def text_of(token: object) -> str:
    """Return the text of a token."""
    return token.content if isinstance(token, tokenizers.AddedToken) else str(token)


def _combine(
    class_name: str,
    values: JsonObject,
    further: Mapping[str, object],
    added: Mapping[int, tokenizers.AddedToken],
) -> TokenizerSettings:
    roles: dict[str, Token | None] = {}
    for role in ROLES:
        if role in values.values:
            roles[role] = _read_role(values, role, values.values[role])
    for role, value in values.values.items():
        if role.endswith("_token") and role not in ROLES and _is_token(value):
            roles[role] = _read_role(values, role, value)
    for role, value in further.items():
        roles[role] = _read_role(values, role, value)
    key = _EXTRA if _EXTRA in values.values else _OLD_EXTRA
    extra = values.values.get(key)
    if extra is not None and not isinstance(extra, list):
        raise values.wrong(key, "a list of tokens")
    if key == _OLD_EXTRA:
        extra = _complete_extra(class_name, values, extra)
    return TokenizerSettings(
        class_name=class_name,
        values=values,
        roles=roles,
        extra=tuple(_read_extra(values, one) for one in extra or ()),
        added=dict(added),
    )


def _complete_extra(
    class_name: str, values: JsonObject, extra: list[object] | None
) -> list[object] | None:
    """Return the further special tokens, with those that a class has by itself."""
    if class_name == "CamembertTokenizer":
        return ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"] if extra is None else extra
    if class_name != "T5Tokenizer":
        return extra
    count = values.count("extra_ids")
    count = _T5_EXTRA_IDS if count is None else count
    if count > _T5_EXTRA_IDS_MAX:
        raise values.wrong("extra_ids", f"at most {_T5_EXTRA_IDS_MAX}")
    named = [one for one in extra or [] if "<extra_id_" in text_of(one)]
    if not named:
        return [*(extra or []), *(f"<extra_id_{index}>" for index in range(count))]
    if count not in (0, len(named)):
        raise values.wrong("extra_ids", f"{len(named)}, the number of <extra_id_...> tokens")
    return extra


def _map_path(folder: Path) -> Path:
    return folder / "special_tokens_map.json"


def _is_further_role(key: str, value: object) -> bool:
    return key.endswith("_token") and key not in ROLES and isinstance(value, str)


def _is_token(value: object) -> bool:
    if isinstance(value, dict):
        return value.get("__type") == "AddedToken"
    return isinstance(value, str | tokenizers.AddedToken)


def _complete(values: dict[str, Any], further: dict[str, Any], older: JsonObject) -> None:
    """Add the content of `special_tokens_map.json`, which wins."""
    for key, value in older.values.items():
        if isinstance(value, dict) and key != _EXTRA:
            values[key] = _read_token(older, key, {**value, "special": True})
        elif key == _EXTRA and isinstance(value, list):
            present = list(values.get(_EXTRA) or [])
            for one in value:
                if isinstance(one, dict):
                    present.append(_read_token(older, key, {**one, "special": True}))
                elif one not in present:
                    present.append(one)
            values[key] = present
        else:
            values[key] = value
    if isinstance(values.get(_EXTRA), dict):
        further |= values.pop(_EXTRA)


def _read_older(
    values: Mapping[str, Any], older: JsonObject
) -> Iterator[tuple[int, tokenizers.AddedToken]]:
    """Yield the tokens of `added_tokens.json`, by id."""
    special = {text_of(values[role]) for role in ROLES if values.get(role)}
    extra = values.get(_EXTRA)
    special |= {text_of(token) for token in extra} if isinstance(extra, list) else set()
    for content, index in older.values.items():
        if not isinstance(index, int):
            raise older.wrong(content, "the token's id")
        yield (
            index,
            tokenizers.AddedToken(
                content,
                rstrip=False,
                lstrip=False,
                normalized=content not in special,
                special=content in special,
            ),
        )


def _read_token(file: JsonObject, key: str, value: object) -> tokenizers.AddedToken:
    """Read a token that is an object."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise file.wrong(key, "a token with its content")
    flags = {name: flag for name, flag in value.items() if name not in ("content", "__type")}
    unknown = sorted(flags.keys() - _PROPERTIES)
    if unknown or not all(isinstance(flag, bool) for flag in flags.values()):
        raise file.wrong(f"{key}.{(unknown or sorted(flags))[0]}", "a known property of a token")
    return tokenizers.AddedToken(value["content"], **flags)


def _read_role(file: JsonObject, role: str, value: object) -> Token | None:
    if value is None or isinstance(value, str | tokenizers.AddedToken):
        return value
    return _read_token(file, role, value)


def _read_extra(file: JsonObject, value: object) -> Token:
    token = _read_role(file, _EXTRA, value)
    if token is None:
        raise file.wrong(_EXTRA, "a list of tokens")
    return token


def _state(token: Token | None) -> object:
    if not isinstance(token, tokenizers.AddedToken):
        return token
    return {name: getattr(token, name) for name in sorted(_PROPERTIES)}
