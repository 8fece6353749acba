"""Finds out whether a model needs token types, which tell the texts of a pair apart."""

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.tokenizers.tokenizer import Tokenizer

# The architectures that have two token types if `config.json` does not say.
_TWO_TYPES = frozenset({"bert", "electra", "albert"})


def needs_types(properties: ModelProperties) -> bool:
    """Return whether a model has token types, and its tokenizer uses more than the first.

    Raises:
        ModelError: The tokenizer cannot be read.
    """
    config = JsonObject(properties.transformer_folder / "config.json", properties.config)
    types = config.count("type_vocab_size")
    if types is None:
        types = 2 if properties.model_type in _TWO_TYPES else 0
    return types > 1 and Tokenizer.load(properties).has_types
