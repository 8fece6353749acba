"""Reads whether a model is an embedding model or a cross-encoder."""

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.folder.modules import Modules
from embedgrpc.models.kinds import Kind, PairTemplate

_CLASSIFIER = "ForSequenceClassification"
# These models pad queries with [MASK] tokens and drop punctuation from documents.
_LATE_INTERACTION = frozenset({"MultiVectorEncoder", "ColBERT", "HF_ColBERT"})
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
}


def find_kind(config: JsonObject, extras: JsonObject, modules: Modules) -> Kind:
    """Return the kind of a model.

    Args:
        config: `config.json`.
        extras: `config_sentence_transformers.json`.
        modules: The content of `modules.json`.

    Raises:
        ModelError: The kind is missing, contradictory or not supported.
    """
    named = extras.text("model_type", default="")
    if named and named not in _MODEL_TYPES:
        raise ModelError(f"{extras.path}: model_type {named!r} is not supported")
    if modules.logit_score is not None:
        return _check_causal(extras, modules, named)
    if modules.splade or named == "SparseEncoder":
        return _check_sparse(extras, modules, named)
    if modules.poolings:
        if named and _MODEL_TYPES[named] is not Kind.EMBEDDING:
            raise ModelError(f"{extras.path}: model_type {named!r} contradicts the Pooling module")
        _check_token_dimensions(config, modules)
        return Kind.EMBEDDING
    architectures = _read_architectures(config)
    refused = sorted(_LATE_INTERACTION.intersection(architectures))
    if refused:
        raise ModelError(f"{config.path}: architectures {refused[0]!r} is not supported")
    if any(name.endswith(_CLASSIFIER) for name in architectures):
        _check_one_label(config)
        return Kind.CROSS_ENCODER
    for ending, advice in _UNCLEAR.items():
        if any(name.endswith(ending) for name in architectures):
            raise ModelError(f"{config.path}: architectures has {ending}: {advice}")
    path = extras.path.parent / "modules.json"
    fault = "has no Pooling module" if path.exists() else "is missing"
    raise ModelError(
        f"{path} {fault}, so it is unknown how to pool token vectors; set pooling and normalize "
        "for this model in the configuration"
    )


def _read_architectures(config: JsonObject) -> list[str]:
    names = config.values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise config.wrong("architectures", "a list of names")
    return names


def _check_causal(extras: JsonObject, modules: Modules, named: str) -> Kind:
    if modules.poolings or modules.splade:
        path = extras.path.parent / "modules.json"
        raise ModelError(f"{path} has a pooling beside LogitScore: one of them must go")
    if named not in {"", "CrossEncoder"}:
        raise ModelError(f"{extras.path}: model_type {named!r} contradicts the LogitScore module")
    return Kind.CROSS_ENCODER


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
            f"{config.path}: hidden_size is {hidden}, but the Pooling module's config.json says "
            f"{modules.token_dimensions}"
        )


def _check_one_label(config: JsonObject) -> None:
    labels = config.count("num_labels")
    key = "num_labels"
    if labels is None:
        labels, key = len(config.table("id2label")), "id2label"
    if labels == 0:
        raise ModelError(f"{config.path}: num_labels or id2label must be set")
    if labels != 1:
        raise ModelError(
            f"{config.path}: {key} has {labels} labels; only cross-encoders with 1 are supported"
        )
