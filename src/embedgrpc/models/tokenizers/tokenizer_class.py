"""Settings of `tokenizer_config.json` that override `tokenizer.json`.

For a tokenizer class of an architecture, transformers builds the normaliser or the pre-tokenizer
from `tokenizer_config.json` and ignores that of `tokenizer.json`. For a general class, only
`tokenizer.json` counts.
"""

from collections.abc import Mapping
from pathlib import Path

import tokenizers

from embedgrpc.models.files.json_file import JsonObject

_WORD_PIECE = frozenset({"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer",
                         "MPNetTokenizer"})  # fmt: skip
_BYTE_LEVEL = frozenset({"RobertaTokenizer"})
# The class by model type, if `tokenizer_config.json` names none.
_CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
}


def find_changes(folder: Path, root: Path, model_type: str) -> Mapping[str, bool]:
    """Return the settings of `tokenizer_config.json` that differ from `tokenizer.json`.

    Args:
        folder: The folder of both files.
        root: The model's folder.
        model_type: The architecture.

    Returns:
        The values by their name in `tokenizer.json`.

    Raises:
        ModelError: A file cannot be read, or a value is not a boolean.

    Source: transformers `BertTokenizer`, `MPNetTokenizer` and `RobertaTokenizer`.
    """
    config = JsonObject.read_if_present(folder / "tokenizer_config.json", root)
    name = config.text("tokenizer_class", default=_CLASSES.get(model_type, ""))
    name = name.removesuffix("Fast")
    wanted: dict[str, bool] = {}
    if name in _WORD_PIECE:
        part, kind = "normalizer", "BertNormalizer"
        lowercase = config.flag("do_lower_case", default=True)
        wanted["lowercase"] = lowercase
        wanted["strip_accents"] = config.flag("strip_accents", default=lowercase)
        wanted["handle_chinese_chars"] = config.flag("tokenize_chinese_chars", default=True)
    elif name in _BYTE_LEVEL:
        part, kind = "pre_tokenizer", "ByteLevel"
        wanted["add_prefix_space"] = config.flag("add_prefix_space", default=False)
    else:
        return {}
    present = JsonObject.read(folder / "tokenizer.json", root).table(part)
    if present.get("type") != kind:
        return {}
    # By default accents are stripped if texts are lowercased.
    implied = {"strip_accents": present.get("lowercase")}
    return {
        key: value
        for key, value in wanted.items()
        if value != (implied.get(key) if present.get(key) is None else present[key])
    }


def apply_changes(tokenizer: tokenizers.Tokenizer, changes: Mapping[str, bool]) -> None:
    """Apply the changes of `find_changes` to a tokenizer."""
    for key, value in changes.items():
        part = "pre_tokenizer" if key == "add_prefix_space" else "normalizer"
        step = getattr(tokenizer, part)
        setattr(step, key, value)
        setattr(tokenizer, part, step)
