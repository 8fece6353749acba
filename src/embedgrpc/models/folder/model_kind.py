"""Finds out what a model answers with, and refuses what contradicts itself."""

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.kinds import Kind

_CLASSIFIER = "ForSequenceClassification"
# Their queries are filled up with [MASK] tokens, and their documents lose punctuation.
_LATE_INTERACTION = frozenset({"MultiVectorEncoder", "ColBERT", "HF_ColBERT"})
_MODEL_TYPES = {
    "SentenceTransformer": Kind.EMBEDDING,
    "CrossEncoder": Kind.CROSS_ENCODER,
    "SparseEncoder": Kind.EMBEDDING,
}


def find_kind(config: JsonObject, extras: JsonObject, modules: Modules) -> Kind:
    """Finds what a model answers with.

    Args:
        config: `config.json`.
        extras: `config_sentence_transformers.json`.
        modules: What `modules.json` says.

    Returns:
        The kind.

    Raises:
        ModelError: The files do not say, contradict each other, or name what is not supported.
    """
    named = extras.text("model_type", default="")
    if named and named not in _MODEL_TYPES:
        late = ": one vector per token is not" if named in _LATE_INTERACTION else ""
        raise ModelError(f"{extras.path}: model_type {named!r} is not supported{late}")
    if modules.splade or named == "SparseEncoder":
        return _check_sparse(extras, modules, named)
    if modules.poolings:
        if named and _MODEL_TYPES[named] is not Kind.EMBEDDING:
            raise ModelError(f"{extras.path}: model_type {named!r} contradicts the Pooling module")
        _check_token_dimensions(config, modules)
        return Kind.EMBEDDING
    architectures = config.values.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise config.wrong("architectures", "a list of names")
    refused = sorted(_LATE_INTERACTION.intersection(architectures))
    if refused:
        raise ModelError(f"{config.path}: architectures {refused[0]!r} is not supported")
    if any(name.endswith(_CLASSIFIER) for name in architectures):
        _check_one_label(config)
        return Kind.CROSS_ENCODER
    path = extras.path.parent / "modules.json"
    fault = "has no Pooling module" if path.exists() else "is missing"
    raise ModelError(
        f"{path} {fault}: it says how token vectors are pooled; set pooling and normalize for "
        "this model in the configuration"
    )


def _check_sparse(extras: JsonObject, modules: Modules, named: str) -> Kind:
    if not modules.splade:
        path = extras.path.parent / "modules.json"
        raise ModelError(f"{path} has no SpladePooling module, which a SparseEncoder needs")
    if named not in {"", "SparseEncoder"}:
        raise ModelError(
            f"{extras.path}: model_type {named!r} contradicts the SpladePooling module"
        )
    return Kind.EMBEDDING


def _check_token_dimensions(config: JsonObject, modules: Modules) -> None:
    hidden = config.count("hidden_size")
    if hidden is not None and hidden != modules.token_dimensions:
        raise ModelError(
            f"{config.path}: hidden_size {hidden} is not the {modules.token_dimensions} "
            "that the Pooling module's config.json says"
        )


def _check_one_label(config: JsonObject) -> None:
    labels = config.count("num_labels")
    key = "num_labels"
    if labels is None:
        labels, key = len(config.table("id2label")), "id2label"
    if labels == 0:
        raise ModelError(f"{config.path}: num_labels or id2label must say how many there are")
    if labels != 1:
        raise ModelError(
            f"{config.path}: {key} says {labels} labels; only cross-encoders with 1 are supported"
        )
