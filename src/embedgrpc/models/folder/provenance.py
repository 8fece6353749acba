"""Records which file and key each property of a model comes from."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.late_interaction import LateSettings
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.folder.overrides import ModelOverrides
from embedgrpc.models.folder.representations import Representations
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file

_TOKENS = "logit_score_token_ids"
# The properties of settings that have another name.
_PROPERTIES = {"pooling": "poolings", "true_token": _TOKENS, "false_token": _TOKENS}


class Provenance:
    """The origins of a model's properties, shown by `embedgrpc inspect`.

    Attributes:
        origins: "FILE: KEY" by property, the file relative to the model's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.origins: dict[str, str] = {}
        self._folder = folder

    def note(self, name: str, path: Path, *keys: str) -> None:
        """Record the file of a property, and its keys if any."""
        place = path.relative_to(self._folder).as_posix()
        self.origins[name] = f"{place}: {', '.join(keys)}" if keys else place

    def note_first(self, name: str, places: Iterable[tuple[JsonObject, str]]) -> None:
        """Record the first of these files and keys that is set, if any."""
        for config, key in places:
            if config.values.get(key) is not None:
                self.note(name, config.path, key)
                return

    def note_modules(self, modules: Modules, found: Representations) -> None:
        """Record the properties that come from the modules and the heads of the model."""
        path = self._folder / "modules.json"
        if path.exists():
            for name in ("kind", "representations", "poolings", "dense_layers", "normalize"):
                self.note(name, path)
        self._note_heads(found)
        pooling = modules.pooling
        if pooling is not None:
            modes = [key for key, value in pooling.values.items() if "_mode" in key and value]
            self.note("poolings", pooling.path, *modes)
            keys = ("embedding_dimension", "word_embedding_dimension")
            self.note_first("dimensions", [(pooling, key) for key in keys])
        self._note_table(modules)
        if modules.layers:
            self.note("dimensions", modules.layers[-1].folder / "config.json", "out_features")
        if found.sparse_dimensions and modules.weight_table is None:
            folder = self._folder / modules.transformer
            self.note("sparse_dimensions", folder / "config.json", "vocab_size")

    def _note_heads(self, found: Representations) -> None:
        heads = [head.path for head in (found.sparse_head, found.multi_vector_head) if head]
        if found.exported is not None:
            heads.append(found.exported)
        if heads:
            places = [self._folder / "modules.json", *heads]
            self.origins["representations"] = ", ".join(place.name for place in places)
        if found.multi_vector_head:
            self.note("multi_vector_dimensions", found.multi_vector_head.path, "weight")
        elif found.multi_vector_dimensions and found.exported is not None:
            self.note("multi_vector_dimensions", found.exported)

    def note_logit_score(self, modules: Modules) -> None:
        """Record the file of the tokens that make a causal model's score."""
        if modules.logit_score_path is not None:
            keys = ("true_token_id", "false_token_id")
            self.note(_TOKENS, modules.logit_score_path, *keys)

    def _note_table(self, modules: Modules) -> None:
        weights = modules.weight_table
        if weights is not None:
            place = weights.folder / weights.file
            if weights.is_listed:
                # The weights of all tokens, named or not.
                place = find_tokenizer_file(self._folder / modules.transformer)
            self.note("sparse_dimensions", place, *filter(None, [weights.name]))
        if modules.table is None:
            return
        place = self._folder / modules.transformer / modules.table.file
        self.note("dimensions", place, modules.table.name)
        if not (self._folder / "modules.json").exists():
            for name in ("kind", "poolings", "normalize"):
                self.note(name, self._folder / "config.json")

    def note_late_interaction(self, settings: LateSettings | None) -> None:
        """Record the file that says how a model of late interaction computes its roles."""
        if settings is None:
            return
        keys = [key for key, value in settings.values.items() if value is not None]
        names = ("max_tokens", "query_length", "document_length", "query_expansion")
        for name in names if keys else ():
            self.note(name, settings.source.path, *(keys if name == "max_tokens" else ()))
        if settings.prefixes:
            self.note("prompts", settings.prefix_source.path)

    def note_overrides(self, overrides: ModelOverrides) -> None:
        """Record the settings that override the files."""
        defaults = ModelOverrides()
        for setting in fields(overrides):
            if getattr(overrides, setting.name) != getattr(defaults, setting.name):
                name = _PROPERTIES.get(setting.name, setting.name)
                self.origins[name] = f"configuration: {setting.name}"
        if overrides.pair_template is not None:
            self.origins.setdefault(_TOKENS, "configuration: pair_template")
