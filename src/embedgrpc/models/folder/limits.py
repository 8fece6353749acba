"""Reads how many tokens a model accepts."""

from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.transformer_keys import read_arguments

_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

# Tokenizers write a larger number for "no limit".
_NO_LIMIT = 10**9

# The positions of these models start after the padding token: the first rows are never used.
OFFSET_POSITIONS = frozenset(
    {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet",
     "longformer", "luke", "mluke", "xmod", "data2vec-text", "ibert"}
)  # fmt: skip
# These models have one row per position, so no setting may exceed the table.
EDGE_POSITIONS = frozenset({"bert", "distilbert", "electra", "albert", "ernie"})
_TABLE_POSITIONS = OFFSET_POSITIONS | EDGE_POSITIONS
# What the reference takes where `config.json` has none.
_NOMIC_POSITIONS = 2048


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """The settings that sentence-transformers adds to the backbone's own files.

    Attributes:
        max_tokens: The longest sequence, special tokens included; None if not set.
        lowercase: Whether texts are lowercased first.
        config: The file that was read.
        key: The key that sets `max_tokens`.
    """

    max_tokens: int | None
    lowercase: bool
    config: JsonObject
    key: str = "max_seq_length"


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """The longest sequence that a model accepts.

    Attributes:
        tokens: Special tokens included.
        config: The file that sets it.
        key: The key in this file; empty if the configuration sets it.
    """

    tokens: int
    config: JsonObject
    key: str


def read_transformer_settings(folder: Path, root: Path) -> TransformerSettings:
    """Read `sentence_bert_config.json` or the file of an older name in the backbone's folder.

    Raises:
        ModelError: The file cannot be used, or sets something that is not supported.
    """
    paths = [folder / name for name in _TRANSFORMER_CONFIGS]
    path = next((path for path in paths if path.exists()), paths[0])
    config = JsonObject.read_if_present(path, root)
    max_tokens, key = None, "max_seq_length"
    arguments = read_arguments(config)
    # The argument wins.
    if arguments.values.get("model_max_length") is not None:
        max_tokens, key = arguments.size("model_max_length"), "model_max_length"
    elif config.values.get(key) is not None:
        max_tokens = config.size(key)
    return TransformerSettings(
        max_tokens=max_tokens,
        key=key,
        lowercase=config.flag("do_lower_case", default=False),
        config=config,
    )


def find_max_tokens(
    settings: TransformerSettings,
    config: JsonObject,
    tokenizer_config: JsonObject,
    *,
    wanted: int | None = None,
) -> TokenLimit:
    """Return the longest sequence that a model accepts.

    Args:
        settings: Those of sentence-transformers; they count up to the size of the position table.
        config: `config.json`.
        tokenizer_config: `tokenizer_config.json`.
        wanted: The limit that the configuration sets, if any.

    Raises:
        ModelError: No file has a limit, it is not a number, or `wanted` exceeds the position table.
    """
    positions = _usable_positions(config)
    model_type = config.text("model_type", default="")
    if wanted is not None:
        if wanted < 1 or (model_type in _TABLE_POSITIONS and positions and wanted > positions):
            raise ModelError(
                f"{config.path}: max_tokens is set to {wanted}, but must be from 1 to {positions}"
            )
        return TokenLimit(wanted, config, "")
    table = TokenLimit(positions, config, "max_position_embeddings") if positions else None
    if settings.max_tokens is not None:
        if table and model_type in _TABLE_POSITIONS and table.tokens < settings.max_tokens:
            return table
        return TokenLimit(settings.max_tokens, settings.config, settings.key)
    length = tokenizer_config.count("model_max_length")
    known = [TokenLimit(length, tokenizer_config, "model_max_length")] if length is not None else []
    known = [limit for limit in (*known, table) if limit and limit.tokens < _NO_LIMIT]
    if not known or min(limit.tokens for limit in known) < 1:
        raise ModelError(
            f"{config.path.parent / _TRANSFORMER_CONFIGS[0]}: max_seq_length must be set, "
            "as neither model_max_length nor max_position_embeddings is; or set max_tokens for "
            "this model in the configuration"
        )
    return min(known, key=lambda limit: limit.tokens)


def table_positions(config: JsonObject) -> int | None:
    """Return the most tokens that a model's table of positions has rows for; None without one."""
    if config.text("model_type", default="") not in _TABLE_POSITIONS:
        return None
    return _usable_positions(config)


def _usable_positions(config: JsonObject) -> int | None:
    positions = config.count("max_position_embeddings")
    if positions is None and config.text("model_type", default="") == "nomic_bert":
        # Older configurations also have a larger number, of positions that rotate well enough.
        return config.count("max_trained_positions") or _NOMIC_POSITIONS
    if positions is None or config.text("model_type", default="") not in OFFSET_POSITIONS:
        return positions
    return positions - (config.count("pad_token_id") or 0) - 1
