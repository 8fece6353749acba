"""Prints the tokenizer classes of the reference, by model type, as JSON.

Runs in the reference's environment alone. Its answer for the newest known release is in
`tests/models/tokenizers/reference_classes.json`.
"""

import json

import transformers  # type: ignore[import-not-found]  # in that environment
from transformers.models.auto import tokenization_auto as auto  # type: ignore[import-not-found]

_NAMES = auto.TOKENIZER_MAPPING_NAMES
# For these, `tokenizer.json` alone counts.
GENERAL = ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizer", "MistralCommonBackend")

if __name__ == "__main__":
    registered = {kind: name.removesuffix("Fast") for kind, name in _NAMES.items() if name}
    special = {kind: name for kind, name in registered.items() if name not in GENERAL}
    found = {
        "version": transformers.__version__,
        "special": dict(sorted(special.items())),
        "general": sorted(registered.keys() - special.keys()),
        "fixed": sorted(special.keys() & auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS),
    }
    print(json.dumps(found, indent=1))  # noqa: T201 - its answer
