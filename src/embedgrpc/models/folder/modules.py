"""Reads the modules of a sentence-transformers folder: `modules.json` and the module folders.

Release 5.4 changed the module paths and the pooling schema; both forms are read. The last part of
a module's type identifies it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import find_member
from embedgrpc.models.folder.logit_score import LogitScore
from embedgrpc.models.folder.module_list import ModuleEntry, list_modules
from embedgrpc.models.folder.multi_vector_mask import MultiVectorMask
from embedgrpc.models.folder.routing import Route
from embedgrpc.models.folder.splade_config import SpladePooling
from embedgrpc.models.folder.token_table import (
    TokenTable,
    is_model2vec,
    read_normalize,
    read_token_table,
)
from embedgrpc.models.folder.weight_table import WeightTable, read_weight_table
from embedgrpc.models.kinds import Pooling
from embedgrpc.models.sources.config_files import MODULES_NAME, ROUTER_TYPES
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.tensors.vector_layers import VectorLayer, read_dense, read_norm

# In the order in which the pooled vectors are concatenated.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LEN,
    "pooling_mode_weightedmean_tokens": Pooling.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
}
_TOKEN_EMBEDDINGS = "token_embeddings"  # noqa: S105 - tokens of text, not a password
_POOLINGS_MAX = 16


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules that follow a backbone.

    Attributes:
        poolings: In order of concatenation; empty without a Pooling module.
        token_dimensions: Values per token vector, from the Pooling module; 0 without one.
        normalize: Whether the pooled vector is scaled to length 1.
        splade: The SpladePooling module, if any.
        mask: The MultiVectorMask module, if any.
        layers: The layers between pooling and normalisation, in order. Without a Pooling module
            they apply to each token vector.
        unit_tokens: Whether each token vector is scaled to length 1.
        transformer: The subfolder of the backbone, its configuration and tokenizer; mostly empty.
        include_prompt: Whether the tokens of a prompt are pooled.
        pooling: The Pooling module's `config.json`, if any.
        logit_score: The LogitScore module of a causal model, if any.
        logit_score_path: Its `config.json`.
        table: The table that a static model has in place of a backbone, if any.
        weight_table: The table of inference-free SPLADE in place of a backbone, if any.
    """

    poolings: tuple[Pooling, ...] = ()
    token_dimensions: int = 0
    normalize: bool = False
    splade: SpladePooling | None = None
    mask: MultiVectorMask | None = None
    layers: tuple[VectorLayer, ...] = ()
    unit_tokens: bool = False
    transformer: str = ""
    include_prompt: bool = True
    pooling: JsonObject | None = None
    logit_score: LogitScore | None = None
    logit_score_path: Path | None = None
    table: TokenTable | None = None
    weight_table: WeightTable | None = None

    @property
    def dimensions(self) -> int:
        """Values per pooled vector; 0 without Pooling."""
        if self.layers:
            return self.layers[-1].out_features
        return self.token_dimensions * len(self.poolings)


def read_modules(files: ModelFiles, route: Route | None = None) -> Modules:
    """Read the modules of a model; without a `modules.json` there are none.

    Args:
        files: The model's folder. The table of a static model is downloaded to it.
        route: The modules to read of a model with routes.

    Raises:
        ModelError: A file is missing or wrong, or a module is not supported.
    """
    folder = files.folder
    path = folder / MODULES_NAME
    if not path.exists():
        if not is_model2vec(folder):
            return Modules()
        modules = _use_table(Modules(), files, "")
        return replace(modules, normalize=read_normalize(folder))
    entries = route.entries if route else list_modules(folder)
    modules = Modules()
    for index, entry in enumerate(entries):
        modules = _append_module(files, entry, index, modules)
    if modules.weight_table is not None and len(entries) > 1:
        raise ModelError(f"{path}: {_LOOK_UP} must be the only module")
    if modules.table is not None and modules.table.of_model2vec:
        _check_normalize(folder, modules)
    return modules


def _append_module(files: ModelFiles, entry: ModuleEntry, index: int, modules: Modules) -> Modules:
    """Return the modules with the one that an entry of the list names."""
    folder, name = files.folder, entry.name
    read = _READERS.get(name)
    if name in _ADVICE:
        raise ModelError(f"{entry.type_place} {name!r} is not supported: {_ADVICE[name]}")
    if read is None:
        known = ", ".join(_READERS)
        raise ModelError(f"{entry.type_place} {name!r} is not supported, only {known} are")
    if entry.has_own_code and name not in _TRANSFORMERS:
        raise ModelError(
            f"{entry.type_place} {entry.type!r} is code of the model's own, which is not run"
        )
    if (index == 0) != (name in _FIRST):
        raise ModelError(
            f"{entry.type_place} {name!r} is out of place: the first module, and no other, "
            f"must be one of {', '.join(sorted(_FIRST))}"
        )
    find_member(folder, folder, entry.folder, named_by=entry.folder_place)
    modules = read(folder, entry.folder, modules)
    if name == _LOOK_UP:
        return replace(modules, weight_table=read_weight_table(files, folder / entry.folder))
    return _use_table(modules, files, entry.folder) if name == _STATIC else modules


def _use_table(modules: Modules, files: ModelFiles, subfolder: str) -> Modules:
    """Return the modules with a static model's table, whose vectors are averaged."""
    table = read_token_table(files, files.folder / subfolder)
    return replace(
        modules, table=table, poolings=(Pooling.MEAN,), token_dimensions=table.dimensions
    )


def _check_normalize(folder: Path, modules: Modules) -> None:
    """Refuse a folder that the two libraries read differently."""
    if read_normalize(folder) != modules.normalize:
        has = "has a" if modules.normalize else "has no"
        raise ModelError(
            f"{folder / 'modules.json'} {has} Normalize module, but normalize in config.json is "
            f"{str(not modules.normalize).lower()}: make them agree"
        )


def _read_transformer(folder: Path, subfolder: str, modules: Modules) -> Modules:
    del folder
    return replace(modules, transformer=subfolder)


def _read_pooling(folder: Path, subfolder: str, modules: Modules) -> Modules:
    if modules.poolings or modules.normalize or modules.splade or modules.layers or modules.mask:
        raise ModelError(f"{folder / 'modules.json'}: Pooling must come once, before Normalize")
    path = folder / subfolder / "config.json"
    if not path.exists():
        raise ModelError(f"{path} is missing: it must say how to pool token vectors")
    config = JsonObject.read(path, folder)
    key = "embedding_dimension"
    if key not in config.values:
        key = "word_embedding_dimension"
    return replace(
        modules,
        poolings=_read_poolings(config),
        token_dimensions=config.size(key),
        include_prompt=config.flag("include_prompt", default=True),
        pooling=config,
    )


def _read_poolings(config: JsonObject) -> tuple[Pooling, ...]:
    value = config.values.get("pooling_mode")
    if value is None:
        return _read_pooling_flags(config)
    names = value if isinstance(value, list) else [value]
    if len(names) > _POOLINGS_MAX:
        raise config.wrong("pooling_mode", f"at most {_POOLINGS_MAX} names, not {len(names)}")
    try:
        poolings = tuple(Pooling(name) for name in names)
    except ValueError:
        poolings = ()
    if not poolings:
        raise config.wrong("pooling_mode", "one or several of " + ", ".join(Pooling))
    return poolings


def _read_pooling_flags(config: JsonObject) -> tuple[Pooling, ...]:
    unknown = sorted(
        key
        for key in config.values
        if key.startswith("pooling_mode_") and key not in _POOLING_FLAGS
    )
    if unknown:
        raise ModelError(f"{config.path}: {unknown[0]} is not supported")
    if not _POOLING_FLAGS.keys() & config.values.keys():
        raise config.wrong("pooling_mode", "one or several of " + ", ".join(Pooling))
    chosen = tuple(
        pooling for key, pooling in _POOLING_FLAGS.items() if config.flag(key, default=False)
    )
    # The reference takes the mean where every flag is false.
    return chosen or (Pooling.MEAN,)


def _read_normalize(folder: Path, subfolder: str, modules: Modules) -> Modules:
    # The folder often does not exist, because git does not keep empty folders.
    config = JsonObject.read_if_present(folder / subfolder / "config.json", folder)
    if not modules.poolings:
        source = config.text("module_input_name", default="sentence_embedding")
        if source != _TOKEN_EMBEDDINGS:
            raise ModelError(f"{folder / 'modules.json'}: Normalize needs a Pooling before it")
        if config.text("module_output_name", default=source) != _TOKEN_EMBEDDINGS:
            raise config.wrong("module_output_name", _TOKEN_EMBEDDINGS)
        return replace(modules, unit_tokens=True)
    for key in ("module_input_name", "module_output_name"):
        if config.text(key, default="sentence_embedding") != "sentence_embedding":
            raise config.wrong(key, "sentence_embedding")
    return replace(modules, normalize=True)


def _read_dense(folder: Path, subfolder: str, modules: Modules) -> Modules:
    layer = read_dense(folder / subfolder, folder, per_token=not modules.poolings)
    return _append_layer(folder, modules, layer, "Dense")


def _read_norm(folder: Path, subfolder: str, modules: Modules) -> Modules:
    return _append_layer(folder, modules, read_norm(folder / subfolder, folder), "LayerNorm")


def _append_layer(folder: Path, modules: Modules, layer: VectorLayer, name: str) -> Modules:
    if not modules.poolings and name != "Dense":
        raise ModelError(f"{folder / 'modules.json'}: {name} needs a Pooling before it")
    if modules.normalize or modules.unit_tokens:
        raise ModelError(f"{folder / 'modules.json'}: {name} must come before Normalize")
    # The first layer of token vectors is compared with config.json later.
    first = not modules.poolings and not modules.layers
    if not first and layer.in_features != modules.dimensions:
        raise ModelError(
            f"{layer.folder / 'config.json'}: the {name} module needs {layer.in_features} values, "
            f"but the module before it returns {modules.dimensions}"
        )
    return replace(modules, layers=(*modules.layers, layer))


def _read_dropout(folder: Path, subfolder: str, modules: Modules) -> Modules:
    del folder, subfolder  # Dropout does nothing outside of training.
    return modules


def _read_mask(folder: Path, subfolder: str, modules: Modules) -> Modules:
    if modules.poolings or modules.splade or modules.mask:
        raise ModelError(f"{folder / 'modules.json'}: MultiVectorMask must come once, alone")
    return replace(modules, mask=MultiVectorMask.read(folder / subfolder / "config.json", folder))


def _read_splade(folder: Path, subfolder: str, modules: Modules) -> Modules:
    if modules.poolings or modules.splade or modules.mask or modules.layers:
        raise ModelError(f"{folder / 'modules.json'}: SpladePooling must be the only pooling")
    return replace(modules, splade=SpladePooling.read(folder / subfolder / "config.json", folder))


def _read_logit_score(folder: Path, subfolder: str, modules: Modules) -> Modules:
    if modules.poolings or modules.splade or modules.logit_score:
        raise ModelError(
            f"{folder / 'modules.json'}: LogitScore must be the only module after the Transformer"
        )
    path = folder / subfolder / "config.json"
    return replace(modules, logit_score=LogitScore.read(path, folder), logit_score_path=path)


# Modules that are known, with what to do. IDF is the older name of SparseStaticEmbedding, which the
# reference does not know any more.
_NOT_CHOSEN = "the model has several routes, which are served by embedgrpc alone and not on Triton"
_ADVICE = {
    **dict.fromkeys(ROUTER_TYPES, _NOT_CHOSEN),
    "IDF": "its name is SparseStaticEmbedding since sentence-transformers 5: write that name",
}
# Older releases use MLMTransformer for sparse models.
_TRANSFORMERS = frozenset({"Transformer", "MLMTransformer"})
_STATIC = "StaticEmbedding"
_LOOK_UP = "SparseStaticEmbedding"
_FIRST = _TRANSFORMERS | {_STATIC, _LOOK_UP}
_READERS: dict[str, Callable[[Path, str, Modules], Modules]] = {
    "Transformer": _read_transformer,
    "MLMTransformer": _read_transformer,
    _STATIC: _read_transformer,
    _LOOK_UP: _read_transformer,
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "LayerNorm": _read_norm,
    "Dropout": _read_dropout,
    "Normalize": _read_normalize,
    "SpladePooling": _read_splade,
    "MultiVectorMask": _read_mask,
    "LogitScore": _read_logit_score,
}
