"""Lists the files that describe a model: all that is read but the backbone's weights."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from embedgrpc.models.files.json_file import JsonObject, read_json
from embedgrpc.models.files.model_file import find_member
from embedgrpc.models.tensors.token_heads import HEAD_SUFFIXES, MULTI_VECTOR_NAME, SPARSE_NAME

CONFIG_NAME = "config.json"
MODULES_NAME = "modules.json"
# The modules that choose between sequences of others, and their files; the older names come second.
ROUTER_TYPES = ("Router", "Asym")
ROUTER_NAMES = ("router_config.json", CONFIG_NAME)
# Real routers have about four.
ROUTED_MODULES_MAX = 64
# How many routers may be in one another.
ROUTERS_DEPTH_MAX = 4
# Written by the library peft, beside the weights of an adapter.
ADAPTER_NAME = "adapter_config.json"
TOKENIZER_NAME = "tokenizer.json"
# Needed only where the other is missing.
VOCABULARY_NAME = "vocab.txt"
# Small files, all optional, in the root and in the folders of modules.
_SETTINGS = (
    CONFIG_NAME,
    MODULES_NAME,
    ROUTER_NAMES[0],
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


def read_module_folders(root: Path, *, kinds: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the folders that modules.json and its routers name.

    Their content is checked by `read_modules`.

    Args:
        root: The model's folder.
        kinds: The last parts of the types to return; empty for all.

    Raises:
        ModelError: A file cannot be read, or a router's folder is outside of the model's.
    """
    path = root / MODULES_NAME
    modules = read_json(path, root) if path.exists() else []
    if not isinstance(modules, list):
        return ()
    named = [
        (module.get("path", ""), module.get("type", ""))
        for module in modules
        if isinstance(module, dict)
    ]
    left = iter(range(ROUTED_MODULES_MAX))
    folders = (
        folder
        for place, kind in named
        for folder, name in _with_routed(root, place, kind, left)
        if not kinds or name in kinds
    )
    return tuple(dict.fromkeys(folders))


def _with_routed(
    root: Path, place: Any, kind: Any, left: Iterator[int], depth: int = 1
) -> Iterator[tuple[str, str]]:
    """Yield the folder of a module and the last part of its type, and those of its routes.

    Args:
        root: The model's folder.
        place: The module's folder.
        kind: Its type.
        left: Yields as often as a router may still be read: one may lead to itself.
        depth: In how many routers it is, with itself.
    """
    if not isinstance(place, str) or not isinstance(kind, str):
        return
    name = kind.rpartition(".")[2]
    yield place.strip("/"), name
    if name not in ROUTER_TYPES or depth > ROUTERS_DEPTH_MAX or next(left, None) is None:
        return
    folder = find_member(root, root, place, named_by=f"{root / MODULES_NAME}: path")
    types = read_router(folder, root).values.get("types")
    if not isinstance(types, dict):
        return
    for module, its_kind in islice(types.items(), ROUTED_MODULES_MAX):
        yield from _with_routed(root, join_places(place, module), its_kind, left, depth + 1)


def join_places(place: str, inner: str) -> str:
    """Return the path of a folder in another one; empty for the model's own folder."""
    joined = PurePosixPath(place, inner).as_posix()
    return "" if joined == "." else joined


def read_router(folder: Path, root: Path) -> JsonObject:
    """Read the file with the routes of a router; empty if there is none.

    Raises:
        ModelError: The file cannot be read.
    """
    for name in ROUTER_NAMES:
        config = JsonObject.read_if_present(folder / name, root)
        if "structure" in config.values:
            return config
    return JsonObject(folder / ROUTER_NAMES[0], {})


def is_settings_name(name: str) -> bool:
    """Whether a file of this name, in the root or in a module's folder, describes the model."""
    return any(fnmatchcase(name, pattern) for pattern in _SETTINGS)
