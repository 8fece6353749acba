"""Finds how many tokens a model takes."""

from dataclasses import dataclass
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.json_file import JsonObject

_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

# Their position table starts after the padding token, so the first rows are never used.
_OFFSET_POSITIONS = frozenset(
    {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet",
     "longformer", "luke", "mluke", "xmod", "data2vec-text", "ibert"}
)  # fmt: skip
# Their position table has a row per position and no more, so no setting may exceed it.
_TABLE_POSITIONS = _OFFSET_POSITIONS | {"bert", "distilbert", "electra", "albert", "ernie"}


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """What sentence-transformers sets on top of the backbone's own files.

    Attributes:
        max_tokens: The longest sequence, special tokens included; None where it does not say.
        lowercase: Whether texts are lowercased before anything else.
    """

    max_tokens: int | None
    lowercase: bool


def read_transformer_settings(folder: Path) -> TransformerSettings:
    """Reads `sentence_bert_config.json`, or one of the names that it had before.

    Raises:
        ModelError: The file cannot be used, or sets what is not supported.
    """
    paths = [folder / name for name in _TRANSFORMER_CONFIGS]
    path = next((path for path in paths if path.exists()), paths[0])
    config = JsonObject.read_if_present(path)
    for key in ("processing_kwargs", "query_expansion", "query_length", "document_length"):
        if config.values.get(key):
            raise ModelError(f"{path}: {key} is not supported")
    max_tokens = None
    if config.values.get("max_seq_length") is not None:
        max_tokens = config.size("max_seq_length")
    return TransformerSettings(
        max_tokens=max_tokens, lowercase=config.flag("do_lower_case", default=False)
    )


def find_max_tokens(
    settings: TransformerSettings,
    config: JsonObject,
    tokenizer_config: JsonObject,
) -> int:
    """Finds the longest sequence that a model takes.

    Args:
        settings: Of sentence-transformers; what it says counts, within the position table.
        config: `config.json`.
        tokenizer_config: `tokenizer_config.json`.

    Returns:
        Tokens, special tokens included.

    Raises:
        ModelError: No file says, or a limit is no number.
    """
    positions = _usable_positions(config)
    model_type = config.text("model_type", default="")
    if settings.max_tokens is not None:
        if positions is not None and model_type in _TABLE_POSITIONS:
            return min(settings.max_tokens, positions)
        return settings.max_tokens
    # It may be 1e30, which stands for no limit.
    limits = [tokenizer_config.count("model_max_length"), positions]
    known = [limit for limit in limits if limit is not None and limit < 10**9]
    if not known or min(known) < 1:
        raise ModelError(
            f"{config.path.parent / _TRANSFORMER_CONFIGS[0]}: max_seq_length must be set, "
            "as neither model_max_length nor max_position_embeddings says how long a text may be"
        )
    return min(known)


def _usable_positions(config: JsonObject) -> int | None:
    positions = config.count("max_position_embeddings")
    if positions is None or config.text("model_type", default="") not in _OFFSET_POSITIONS:
        return positions
    return positions - (config.count("pad_token_id") or 0) - 1
