"""Reads the LoRA adapter of a model: `adapter_config.json` of the library peft."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject, read_json
from embedgrpc.models.files.model_file import hash_file
from embedgrpc.models.folder.known_keys import ADAPTER
from embedgrpc.models.sources.config_files import (
    ADAPTER_NAME,
    is_settings_name,
    read_module_folders,
)
from embedgrpc.models.sources.source import find_local_adapter
from embedgrpc.models.sources.weight_file import ADAPTER_WEIGHTS, choose_adapter_weights
from embedgrpc.models.tensors.lora import LoraScaling

# Values of `init_lora_weights` that leave the base model's weights as they are.
_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")
# Who wrote a file, and how a text becomes prompts and tokens does not depend on it.
_VERSION_KEYS = frozenset({"__version__", "transformers_version"})


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, which is merged into the weights when the graph is built.

    Attributes:
        root: The folder that nothing is read outside of.
        config: `adapter_config.json`.
        weights: The file of its weights.
        scaling: How strongly it changes the weights.
        saved: The last parts of the names of layers that it replaces.
    """

    root: Path
    config: JsonObject
    weights: Path
    scaling: LoraScaling
    saved: frozenset[str]

    @property
    def digest(self) -> str:
        """The SHA-256 of its weights, in hexadecimal.

        Raises:
            ModelError: The file cannot be read.
        """
        return hash_file(self.weights, self.root)

    def describe(self) -> Mapping[str, Any]:
        """Return the keys that change the merged weights."""
        keys = sorted(ADAPTER.followed & self.config.values.keys())
        return {key: self.config.values[key] for key in keys}


def find_adapter(source: str, folder: Path, root: Path) -> Adapter | None:
    """Return the adapter that the configuration names, or the one beside a model's weights.

    Args:
        source: The folder or package of the adapter elsewhere; mostly empty.
        folder: The backbone's folder.
        root: The model's folder.

    Raises:
        ModelError: The adapter cannot be used, or its folder says other things about the model
            than the model's own.
    """
    beside = folder / ADAPTER_NAME
    if not source:
        return _read(folder, root) if beside.exists() else None
    if beside.exists():
        raise ModelError(f"{beside}: the folder contains an adapter, and adapter is set to another")
    local = find_local_adapter(source)
    if local is None:
        raise ModelError(f"adapter {source!r} was not downloaded")
    _check_same_settings(local, root)
    return _read(local, local)


def _read(folder: Path, root: Path) -> Adapter:
    config = JsonObject.read(folder / ADAPTER_NAME, root)
    kind = config.text("peft_type", default="")
    if kind != "LORA":
        raise config.wrong("peft_type", f"LORA, not {kind}: merge it with peft, and save the model")
    if config.text("bias", default="none") != "none":
        raise config.wrong("bias", "none")
    if config.values.get("init_lora_weights", True) not in _INITIAL:
        raise config.wrong("init_lora_weights", "true, false, gaussian, orthogonal or eva")
    name = choose_adapter_weights(lambda name: (folder / name).exists())
    if name is None:
        raise ModelError(f"{folder / ADAPTER_WEIGHTS[0]} is missing")
    rank = config.size("r")
    saved = config.values.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(one, str) for one in saved):
        raise config.wrong("modules_to_save", "a list of names")
    return Adapter(
        root=root,
        config=config,
        weights=folder / name,
        scaling=LoraScaling(
            rank=rank,
            alpha=config.number("lora_alpha", default=8.0),
            by_root=config.flag("use_rslora", default=False),
            ranks={
                name: _size(config, "rank_pattern", name) for name in config.table("rank_pattern")
            },
            alphas={
                name: JsonObject(config.path, config.table("alpha_pattern")).number(
                    name, default=0.0
                )
                for name in config.table("alpha_pattern")
            },
        ),
        saved=frozenset(saved),
    )


def _size(config: JsonObject, key: str, name: str) -> int:
    return JsonObject(config.path, config.table(key)).size(name)


def _check_same_settings(folder: Path, root: Path) -> None:
    """Check that an adapter's folder says the same about texts, tokens and pooling.

    Raises:
        ModelError: A file differs.
    """
    for place in ("", *read_module_folders(folder)):
        paths = sorted((folder / place).iterdir()) if (folder / place).is_dir() else []
        for path in paths:
            # An adapter has no config.json of the backbone.
            if path.suffix != ".json" or not is_settings_name(path.name):
                continue
            if path.name == ADAPTER_NAME:
                continue
            other = root / path.relative_to(folder)
            if not other.exists() or _meaning(path, folder) != _meaning(other, root):
                raise ModelError(
                    f"{path} differs from {other}, so it is unknown which of them counts: put"
                    f" config.json and the weights of the base model into {folder}, and serve"
                    " that folder without setting adapter"
                )


def _meaning(path: Path, root: Path) -> object:
    values = read_json(path, root)
    if isinstance(values, dict):
        return {key: value for key, value in values.items() if key not in _VERSION_KEYS}
    return values
