"""Reads whether a model is an embedding model, a cross-encoder or a classifier."""

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.labels import has_labels, read_labels
from embedgrpc.models.folder.late_interaction import AUTHORS_ARCHITECTURE, MODEL_TYPES
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.kinds import Kind, PairTemplate

# By the end of an architecture's name: what a folder without modules may be, and what to do.
_SET_POOLING = "if it is an embedding model, set pooling and normalize for it in the configuration"
_UNCLEAR = {
    "ForCausalLM": (
        "the model generates text. If it is a reranker, which scores by the logit of a token: save "
        "it with CrossEncoder of sentence-transformers, which writes modules.json with a "
        "LogitScore; or set pair_template, if its authors wrote one of "
        + ", ".join(PairTemplate)
        + "; or true_token, if the folder has a chat template for a query and a document; "
        + _SET_POOLING
    ),
    "ForMaskedLM": (
        "the model predicts masked tokens. If it is a SPLADE model, load it with SparseEncoder of "
        "sentence-transformers and save it, which writes modules.json with a SpladePooling; "
        + _SET_POOLING
    ),
}
_MODEL_TYPES = {
    "SentenceTransformer": Kind.EMBEDDING,
    "CrossEncoder": Kind.CROSS_ENCODER,
    "SparseEncoder": Kind.EMBEDDING,
    **dict.fromkeys(MODEL_TYPES, Kind.EMBEDDING),
}


def read_architectures(config: JsonObject) -> list[str]:
    """Return the names of architectures in `config.json`.

    Raises:
        ModelError: The key holds something else.
    """
    architectures = config.values.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise config.wrong("architectures", "a list of names")
    return architectures


def find_kind(
    config: JsonObject, extras: JsonObject, modules: Modules, *, is_late: bool = False
) -> Kind:
    """Return the kind of a model.

    Args:
        config: `config.json`.
        extras: `config_sentence_transformers.json`.
        modules: The content of `modules.json`.
        is_late: Whether it is a model of late interaction.

    Raises:
        ModelError: The kind is missing, contradictory or not supported.
    """
    named = extras.text("model_type", default="")
    if named and named not in _MODEL_TYPES:
        raise ModelError(f"{extras.path}: model_type {named!r} is not supported")
    if modules.logit_score is not None:
        return _check_causal(extras, modules, named)
    if modules.splade or modules.weight_table or named == "SparseEncoder":
        return _check_sparse(extras, modules, named)
    if is_late:
        return _check_late(config, extras, modules, named)
    _check_layers(extras, modules)
    if modules.poolings:
        if named in MODEL_TYPES or (named and _MODEL_TYPES[named] is not Kind.EMBEDDING):
            raise ModelError(f"{extras.path}: model_type {named!r} contradicts the Pooling module")
        _check_size(config, "Pooling", modules.token_dimensions)
        return Kind.EMBEDDING
    architectures = read_architectures(config)
    if has_labels(config):
        return Kind.CROSS_ENCODER if len(read_labels(config)) == 1 else Kind.CLASSIFIER
    for ending, advice in _UNCLEAR.items():
        if any(name.endswith(ending) for name in architectures):
            raise ModelError(f"{config.path}: architectures has {ending}: {advice}")
    path = extras.path.parent / "modules.json"
    fault = "has no Pooling module" if path.exists() else "is missing"
    raise ModelError(
        f"{path} {fault}, so it is unknown how to pool token vectors; set pooling and normalize "
        "for this model in the configuration"
    )


def _check_causal(extras: JsonObject, modules: Modules, named: str) -> Kind:
    if modules.poolings or modules.splade:
        path = extras.path.parent / "modules.json"
        raise ModelError(f"{path} has a pooling beside LogitScore: one of them must go")
    if named not in {"", "CrossEncoder"}:
        raise ModelError(f"{extras.path}: model_type {named!r} contradicts the LogitScore module")
    return Kind.CROSS_ENCODER


def _check_sparse(extras: JsonObject, modules: Modules, named: str) -> Kind:
    if not modules.splade and not modules.weight_table:
        path = extras.path.parent / "modules.json"
        raise ModelError(
            f"{path} has no SpladePooling or SparseStaticEmbedding module, which a SparseEncoder "
            "needs"
        )
    if named not in {"", "SparseEncoder"}:
        module = "SpladePooling" if modules.splade else "SparseStaticEmbedding"
        raise ModelError(f"{extras.path}: model_type {named!r} contradicts the {module} module")
    return Kind.EMBEDDING


def _check_layers(extras: JsonObject, modules: Modules) -> None:
    if modules.layers and not modules.poolings:
        raise ModelError(
            f"{extras.path.parent / 'modules.json'}: Dense needs a Pooling before it, unless the "
            f"model_type of {extras.path.name} is one of {', '.join(sorted(MODEL_TYPES))}"
        )


def _check_late(config: JsonObject, extras: JsonObject, modules: Modules, named: str) -> Kind:
    if named and named not in MODEL_TYPES:
        raise ModelError(f"{extras.path}: model_type {named!r} contradicts the modules")
    path = extras.path.parent / "modules.json"
    if not path.exists() and AUTHORS_ARCHITECTURE not in read_architectures(config):
        raise ModelError(
            f"{path} is missing: it must list the modules that make a vector of each token"
        )
    if modules.layers:
        _check_size(config, "Dense", modules.layers[0].in_features)
    return Kind.EMBEDDING


def _check_size(config: JsonObject, module: str, size: int) -> None:
    """Check that a module needs vectors of the size that the backbone makes."""
    hidden = config.count("hidden_size")
    if hidden is not None and hidden != size:
        raise ModelError(
            f"{config.path}: hidden_size is {hidden}, but the {module} module's config.json says "
            f"{size}"
        )
