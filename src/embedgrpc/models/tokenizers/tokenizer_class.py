"""Settings of `tokenizer_config.json` that win over `tokenizer.json`.

Where a tokenizer's class is that of an architecture, transformers makes the normaliser or the
pre-tokenizer anew from `tokenizer_config.json`, whatever `tokenizer.json` says. Where the class is
a general one, `tokenizer.json` counts alone.
"""

from collections.abc import Mapping
from pathlib import Path

import tokenizers

from embedgrpc.models.files.json_file import JsonObject

_WORD_PIECE = frozenset({"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer",
                         "MPNetTokenizer"})  # fmt: skip
_BYTE_LEVEL = frozenset({"RobertaTokenizer"})
# The class of a `tokenizer_config.json` that names none.
_CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
}


def find_changes(folder: Path, root: Path, model_type: str) -> Mapping[str, bool]:
    """Finds what `tokenizer_config.json` says otherwise than `tokenizer.json`.

    Args:
        folder: Where both are.
        root: The model's folder.
        model_type: The architecture.

    Returns:
        By the name that `tokenizer.json` has for it; empty where the two agree.

    Raises:
        ModelError: A file cannot be read, or a key holds no boolean.

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
    # Where it does not say, accents go where capitals do.
    implied = {"strip_accents": present.get("lowercase")}
    return {
        key: value
        for key, value in wanted.items()
        if value != (implied.get(key) if present.get(key) is None else present[key])
    }


def apply_changes(tokenizer: tokenizers.Tokenizer, changes: Mapping[str, bool]) -> None:
    """Changes a tokenizer as `find_changes` says."""
    for key, value in changes.items():
        part = "pre_tokenizer" if key == "add_prefix_space" else "normalizer"
        step = getattr(tokenizer, part)
        setattr(step, key, value)
        setattr(tokenizer, part, step)
