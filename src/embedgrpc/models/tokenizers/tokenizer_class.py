"""Names the class that transformers 5 uses for a tokenizer.

For some classes, transformers rebuilds the normaliser, the pre-tokenizer and the special tokens.
From `tokenizer.json`, it takes little more than the vocabulary. For a general class,
`tokenizer.json` counts.
"""

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.tokenizers.class_names import (
    BY_MODEL_TYPE,
    FIXED_MODEL_TYPES,
    GENERAL_MODEL_TYPES,
    REBUILT,
    REFUSED,
)

# `tokenizer.json` counts.
GENERAL = ""
# transformers rebuilds DebertaV2Tokenizer without the normaliser of the published models: texts get
# other tokens than in training. `tokenizer.json` is right.
_TAKEN_FROM_THE_FILE = ("DebertaV2Tokenizer",)
_NAMES = {
    name: known
    for known, others in {**REBUILT, **dict.fromkeys(_TAKEN_FROM_THE_FILE, ())}.items()
    for name in (known, *others)
}
# Their tokenizers also return the token types of a text. Source: `model_input_names`.
_WITH_TYPES = frozenset({"BertTokenizer", "DebertaV2Tokenizer"})


def choose_class(config: JsonObject, tokenizer_config: JsonObject) -> str:
    """Return the class of a tokenizer, or `GENERAL` if it has none of its own.

    Args:
        config: `config.json`.
        tokenizer_config: `tokenizer_config.json`.

    Raises:
        ModelError: The class is not supported.

    Source: transformers' `AutoTokenizer.from_pretrained`.
    """
    model_type = config.text("model_type", default="")
    if model_type in GENERAL_MODEL_TYPES:
        return GENERAL
    registered = BY_MODEL_TYPE.get(model_type, "")
    file = tokenizer_config
    named = tokenizer_config.text("tokenizer_class", default="")
    if not named:
        file, named = config, config.text("tokenizer_class", default="")
    name = named.removesuffix("Fast")
    if not name or (registered and model_type in FIXED_MODEL_TYPES):
        file, name = config, registered
    if name in REFUSED:
        raise ModelError(
            f"{file.path}: the tokenizer class {name} is not supported; if tokenizer.json alone "
            "gives the right tokens, set tokenizer_class to PreTrainedTokenizerFast in "
            "tokenizer_config.json"
        )
    return _NAMES.get(name, GENERAL)


def is_rebuilt(class_name: str) -> bool:
    """Return whether a class takes only parts of `tokenizer.json`."""
    return class_name in REBUILT


def has_types(class_name: str) -> bool:
    """Return whether models with this class receive token types, if no file says."""
    return class_name in _WITH_TYPES
