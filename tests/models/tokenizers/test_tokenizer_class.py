"""The tokenizer class of each model type is that of the reference."""

import json
from pathlib import Path
from typing import Any

import pytest

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.tokenizers.tokenizer_class import GENERAL, choose_class

REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "reference_classes.json").read_text("utf-8")
)
REFUSED = "refused"


def _choose(model_type: str, named: str = "") -> str:
    """Return the class for a model type and the class that its files name."""
    config = JsonObject(Path("config.json"), {"model_type": model_type})
    tokenizer_config = JsonObject(Path("t.json"), {"tokenizer_class": named} if named else {})
    try:
        return choose_class(config, tokenizer_config)
    except ModelError:
        return REFUSED


def find_unknown(reference: dict[str, Any]) -> list[str]:
    """Return the model types and classes that are taken for general, but are not."""
    special = reference["special"]
    unknown = [kind for kind, name in special.items() if _choose(kind) == GENERAL]
    unknown += [name for name in set(special.values()) if _choose("", name) == GENERAL]
    unknown += [kind for kind in reference["general"] if _choose(kind, "BertTokenizer") != GENERAL]
    unknown += [
        kind for kind in reference["fixed"] if _choose(kind, "T5Tokenizer") != _choose(kind)
    ]
    return sorted(set(unknown))


def test_every_class_of_the_reference_is_known() -> None:
    """A class that is rebuilt is rebuilt or refused, and never taken for a general one."""
    assert find_unknown(REFERENCE) == []


@pytest.mark.parametrize(
    ("model_type", "named", "chosen"),
    [
        ("bert", "", "BertTokenizer"),
        ("align", "", "BertTokenizer"),
        ("whisper", "", REFUSED),
        ("mistral", "LlamaTokenizer", GENERAL),
        ("qwen2", "LlamaTokenizer", "Qwen2Tokenizer"),
        ("bert", "XLMRobertaTokenizerFast", "XLMRobertaTokenizer"),
        ("a type of no library", "", GENERAL),
    ],
)
def test_the_class_follows_from_type_and_name(model_type: str, named: str, chosen: str) -> None:
    """The named class counts, except for types whose files are known to name a wrong one."""
    assert _choose(model_type, named) == chosen
