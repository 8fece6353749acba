"""Remembers which file and key of a model say what was read."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.representations import Representations


class Provenance:
    """Where things were found, for people who wonder why a model is taken for what it is.

    Attributes:
        origins: For each thing "FILE: KEY", the file relative to the model's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.origins: dict[str, str] = {}
        self._folder = folder

    def note(self, name: str, path: Path, *keys: str) -> None:
        """Remembers that a file says something, by its keys or as a whole."""
        place = path.relative_to(self._folder).as_posix()
        self.origins[name] = ": ".join([place, *([", ".join(keys)] if keys else [])])

    def note_first(self, name: str, places: Iterable[tuple[JsonObject, str]]) -> None:
        """Remembers the first place that says something; nothing where none does."""
        for config, key in places:
            if config.values.get(key) is not None:
                self.note(name, config.path, key)
                return

    def note_modules(self, modules: Modules, forms: Representations) -> None:
        """Remembers what the modules say, and the heads beside them."""
        path = self._folder / "modules.json"
        if path.exists():
            for name in ("kind", "representations", "poolings", "dense_layers", "normalize"):
                self.note(name, path)
        heads = [head.path for head in (forms.sparse_head, forms.multi_vector_head) if head]
        if forms.exported is not None:
            heads.append(forms.exported)
        if heads:
            places = [path, *heads]
            self.origins["representations"] = ", ".join(path.name for path in places)
        pooling = modules.pooling
        if pooling is not None:
            modes = [key for key, value in pooling.values.items() if "_mode" in key and value]
            self.note("poolings", pooling.path, *modes)
            keys = ("embedding_dimension", "word_embedding_dimension")
            self.note_first("dimensions", [(pooling, key) for key in keys])
        if modules.layers:
            self.note("dimensions", modules.layers[-1].folder / "config.json", "out_features")
        if forms.sparse_dimensions:
            folder = self._folder / modules.transformer
            self.note("sparse_dimensions", folder / "config.json", "vocab_size")
        if forms.multi_vector_head:
            self.note("multi_vector_dimensions", forms.multi_vector_head.path, "weight")
        elif forms.multi_vector_dimensions and forms.exported is not None:
            self.note("multi_vector_dimensions", forms.exported)

    def note_overrides(self, overrides: ModelOverrides) -> None:
        """Remembers what the configuration says, whatever the files say."""
        silent = ModelOverrides()
        for setting in fields(overrides):
            if getattr(overrides, setting.name) != getattr(silent, setting.name):
                name = "poolings" if setting.name == "pooling" else setting.name
                self.origins[name] = f"configuration: {setting.name}"
