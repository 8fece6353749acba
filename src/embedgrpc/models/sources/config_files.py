"""Lists the files that describe a model: all that is read but the backbone's weights."""

from fnmatch import fnmatchcase
from pathlib import Path

from embedgrpc.models.files.json_file import read_json
from embedgrpc.models.tensors.token_heads import HEAD_SUFFIXES, MULTI_VECTOR_NAME, SPARSE_NAME

CONFIG_NAME = "config.json"
MODULES_NAME = "modules.json"
# Written by the library peft, beside the weights of an adapter.
ADAPTER_NAME = "adapter_config.json"
TOKENIZER_NAME = "tokenizer.json"
# Needed only where the other is missing.
VOCABULARY_NAME = "vocab.txt"
# Small files, all optional, in the root and in the folders of modules.
_SETTINGS = (
    CONFIG_NAME,
    MODULES_NAME,
    ADAPTER_NAME,
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "added_tokens.json",
    "artifact.metadata",
    "chat_template.jinja",
    "special_tokens_map.json",
    TOKENIZER_NAME,
    "tokenizer_config.json",
    VOCABULARY_NAME,
)
# Prose, but for the languages that it names.
CARD_NAME = "README.md"
CARD_BYTES_MAX = 1024 * 1024
# The files of each head, the preferred first.
HEADS = tuple(
    tuple(f"{name}{suffix}" for suffix in HEAD_SUFFIXES)
    for name in (SPARSE_NAME, MULTI_VECTOR_NAME)
)
HEAD_NAMES = frozenset(name for group in HEADS for name in group)


def read_module_folders(root: Path) -> tuple[str, ...]:
    """Return the folders that modules.json names; its content is checked by `read_modules`.

    Raises:
        ModelError: The file cannot be read.
    """
    path = root / MODULES_NAME
    modules = read_json(path, root) if path.exists() else []
    if not isinstance(modules, list):
        return ()
    folders = [module.get("path", "") for module in modules if isinstance(module, dict)]
    return tuple(folder.strip("/") for folder in folders if isinstance(folder, str))


def is_settings_name(name: str) -> bool:
    """Whether a file of this name, in the root or in a module's folder, describes the model."""
    return any(fnmatchcase(name, pattern) for pattern in _SETTINGS)
