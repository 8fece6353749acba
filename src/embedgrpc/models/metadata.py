"""Reads from a model's own files what it is and how it is to be used.

Nothing is guessed: what no file says is an error that names the file which should say it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from embedgrpc.models.errors import ModelError
from embedgrpc.models.evidence import Evidence
from embedgrpc.models.json_file import JsonObject
from embedgrpc.models.kinds import (
    Activation,
    Kind,
    PaddingSide,
    Pooling,
    Representation,
    Similarity,
    WeightType,
)
from embedgrpc.models.limits import EDGE_POSITIONS, find_max_tokens, read_transformer_settings
from embedgrpc.models.modules import Pipeline, VectorLayer, read_pipeline
from embedgrpc.models.overrides import ModelOverrides, check_kind, override_pipeline
from embedgrpc.models.representations import find_representations
from embedgrpc.models.source import ModelFiles
from embedgrpc.models.splade_config import SpladePooling
from embedgrpc.models.token_heads import TokenHead

__all__ = [
    "Activation",
    "Kind",
    "ModelMetadata",
    "PaddingSide",
    "Pooling",
    "Representation",
    "Similarity",
    "read",
]

_CLASSIFIER = "ForSequenceClassification"
_ACTIVATIONS = {"Sigmoid": Activation.SIGMOID, "Identity": Activation.IDENTITY}
# Their queries are filled up with [MASK] tokens, and their documents lose punctuation.
_LATE_INTERACTION = frozenset({"MultiVectorEncoder", "ColBERT", "HF_ColBERT"})
_MODEL_TYPES = {
    "SentenceTransformer": Kind.EMBEDDING,
    "CrossEncoder": Kind.CROSS_ENCODER,
    "SparseEncoder": Kind.EMBEDDING,
}


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model is and how it is to be used.

    Attributes:
        kind: What it answers with.
        model_type: The architecture, as `config.json` names it.
        poolings: In order of concatenation; empty for a cross-encoder.
        normalize: Whether its vectors are scaled to length 1.
        token_dimensions: Values per token vector of the backbone, as the Pooling module says; 0
            without one.
        dimensions: Values per vector; 0 for a cross-encoder.
        max_tokens: The longest sequence, special tokens included.
        prompts: Text to put in front of a text, by name.
        default_prompt_name: The prompt to take where none is asked for; empty for no prompt.
        similarity: How two vectors are meant to be compared.
        activation: What turns a cross-encoder's logit into its score.
        padding_side: Where padding goes.
        pad_token_id: The token that fills it.
        config: `config.json`.
        representations: The forms that its vectors have, the default first; empty for a
            cross-encoder.
        sparse_dimensions: Entries of the vocabulary; 0 without sparse vectors.
        multi_vector_dimensions: Values per vector of a token; 0 without multi-vectors.
        transformer_folder: Where `config.json`, `tokenizer.json` and the weights are.
        dense_layers: What the pooled vector goes through before it is scaled to length 1: Dense
            and LayerNorm modules, in order.
        lowercase: Whether texts are lowercased before anything else.
        file: The file of weights to take, relative to `transformer_folder`; empty where none is
            asked for.
        output: The output of an ONNX graph to take; empty where none is asked for.
        task_id: What to feed a graph that chooses a task by number.
        weight_type: What the graph is to compute in.
        pooling_is_set: Whether the configuration says how to pool, so that a graph which pools by
            itself need not agree.
        splade: What makes a sparse vector of a masked-language head's logits; None without.
        sparse_head: What makes the weights of tokens; None without.
        multi_vector_head: What makes the vectors of tokens; None without.
        unweighted_token_ids: Tokens whose weights are left out of a sparse vector.
        multi_vector_skip_tokens: Tokens at the start whose vectors are left out.
        origins: For each of these that a file says "FILE: KEY", relative to the model's folder;
            or "configuration: KEY". What is in none of them is a default.
    """

    kind: Kind
    model_type: str
    poolings: tuple[Pooling, ...]
    normalize: bool
    token_dimensions: int
    dimensions: int
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt_name: str
    similarity: Similarity
    activation: Activation
    padding_side: PaddingSide
    pad_token_id: int
    config: Mapping[str, Any]
    transformer_folder: Path
    representations: tuple[Representation, ...]
    sparse_dimensions: int = 0
    multi_vector_dimensions: int = 0
    dense_layers: tuple[VectorLayer, ...] = ()
    lowercase: bool = False
    file: str = ""
    output: str = ""
    task_id: int | None = None
    weight_type: WeightType = WeightType.FLOAT32
    pooling_is_set: bool = False
    splade: SpladePooling | None = None
    sparse_head: TokenHead | None = None
    multi_vector_head: TokenHead | None = None
    unweighted_token_ids: frozenset[int] = frozenset()
    multi_vector_skip_tokens: int = 0
    origins: Mapping[str, str] = field(default_factory=dict)


def read(files: ModelFiles, overrides: ModelOverrides | None = None) -> ModelMetadata:
    """Reads the metadata of a model.

    Args:
        files: The model's folder.
        overrides: What the configuration says about it.

    Returns:
        What its files say, and what the configuration says instead.

    Raises:
        ModelError: A file is missing or wrong, or asks for what is not supported.
    """
    overrides = overrides or ModelOverrides()
    pipeline = _read_pipeline_if_present(files.folder)
    folder = files.folder / pipeline.transformer
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder / 'config.json'} is missing: the folder holds no model")
    config = JsonObject.read(folder / "config.json")
    extras = JsonObject.read_if_present(files.folder / "config_sentence_transformers.json")
    tokenizer_config = JsonObject.read_if_present(folder / "tokenizer_config.json")
    model_type = config.text("model_type", default="")
    if not model_type:
        raise config.wrong("model_type", "the name of an architecture")
    pipeline = override_pipeline(pipeline, config, overrides)
    kind = _find_kind(config, extras, pipeline)
    check_kind(kind, str(files.folder), overrides)
    settings = read_transformer_settings(folder)
    prompts = {**_read_prompts(extras), **overrides.prompts}
    forms = find_representations(files, config, pipeline, overrides)
    limit = find_max_tokens(settings, config, tokenizer_config, wanted=overrides.max_tokens)
    evidence = Evidence(files.folder)
    evidence.note_first("kind", [(config, "architectures")])
    evidence.note_pipeline(pipeline, forms)
    evidence.note_first("model_type", [(config, "model_type")])
    evidence.note_first("max_tokens", [(limit.config, limit.key)])
    evidence.note_first("lowercase", [(settings.config, "do_lower_case")])
    for name in ("prompts", "default_prompt_name"):
        evidence.note_first(name, [(extras, name)])
    evidence.note_first("similarity", [(extras, "similarity_fn_name")])
    evidence.note_first("activation", _activation_places(config, extras))
    evidence.note_first("padding_side", [(tokenizer_config, "padding_side")])
    evidence.note_first("pad_token_id", [(config, "pad_token_id"), (tokenizer_config, "pad_token")])
    evidence.note_overrides(overrides)
    return ModelMetadata(
        kind=kind,
        model_type=model_type,
        poolings=pipeline.poolings,
        normalize=pipeline.normalize,
        token_dimensions=pipeline.token_dimensions,
        dimensions=pipeline.dimensions,
        max_tokens=limit.tokens,
        prompts=prompts,
        default_prompt_name=_find_default_prompt_name(extras, prompts, overrides),
        similarity=overrides.similarity
        or _read_similarity(
            extras, default=Similarity.DOT if pipeline.splade else Similarity.COSINE
        ),
        activation=overrides.activation or _read_activation(config, extras),
        padding_side=overrides.padding_side or _find_padding_side(model_type, tokenizer_config),
        pad_token_id=_find_pad_token_id(folder, config, tokenizer_config)
        if overrides.pad_token_id is None
        else overrides.pad_token_id,
        config=config.values,
        transformer_folder=folder,
        dense_layers=pipeline.layers,
        lowercase=settings.lowercase if overrides.lowercase is None else overrides.lowercase,
        file=overrides.file,
        output=overrides.output,
        task_id=overrides.task_id,
        pooling_is_set=bool(overrides.pooling),
        weight_type=overrides.weight_type,
        representations=forms.names,
        sparse_dimensions=forms.sparse_dimensions,
        multi_vector_dimensions=forms.multi_vector_dimensions,
        splade=pipeline.splade,
        sparse_head=forms.sparse_head,
        multi_vector_head=forms.multi_vector_head,
        unweighted_token_ids=forms.unweighted_token_ids,
        multi_vector_skip_tokens=forms.multi_vector_skip_tokens,
        origins=evidence.origins,
    )


def _read_pipeline_if_present(folder: Path) -> Pipeline:
    if (folder / "modules.json").exists():
        return read_pipeline(folder)
    return Pipeline(poolings=(), token_dimensions=0, normalize=False)


def _find_kind(config: JsonObject, extras: JsonObject, pipeline: Pipeline) -> Kind:
    named = extras.text("model_type", default="")
    if named and named not in _MODEL_TYPES:
        late = ": one vector per token is not" if named in _LATE_INTERACTION else ""
        raise ModelError(f"{extras.path}: model_type {named!r} is not supported{late}")
    if pipeline.splade or named == "SparseEncoder":
        return _check_sparse(extras, pipeline, named)
    if pipeline.poolings:
        if named and _MODEL_TYPES[named] is not Kind.EMBEDDING:
            raise ModelError(f"{extras.path}: model_type {named!r} contradicts the Pooling module")
        _check_token_dimensions(config, pipeline)
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
    modules = extras.path.parent / "modules.json"
    fault = "has no Pooling module" if modules.exists() else "is missing"
    raise ModelError(
        f"{modules} {fault}: it says how token vectors are pooled; set pooling and normalize for "
        "this model in the configuration"
    )


def _check_sparse(extras: JsonObject, pipeline: Pipeline, named: str) -> Kind:
    if not pipeline.splade:
        modules = extras.path.parent / "modules.json"
        raise ModelError(f"{modules} has no SpladePooling module, which a SparseEncoder needs")
    if named not in {"", "SparseEncoder"}:
        raise ModelError(
            f"{extras.path}: model_type {named!r} contradicts the SpladePooling module"
        )
    return Kind.EMBEDDING


def _check_token_dimensions(config: JsonObject, pipeline: Pipeline) -> None:
    hidden = config.count("hidden_size")
    if hidden is not None and hidden != pipeline.token_dimensions:
        raise ModelError(
            f"{config.path}: hidden_size {hidden} is not the {pipeline.token_dimensions} "
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


def _read_prompts(extras: JsonObject) -> Mapping[str, str]:
    prompts = {
        name: "" if prompt is None else prompt for name, prompt in extras.table("prompts").items()
    }
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            raise extras.wrong(f"prompts.{name}", "a string")
    return prompts


def _find_default_prompt_name(
    extras: JsonObject, prompts: Mapping[str, str], overrides: ModelOverrides
) -> str:
    if overrides.default_prompt_name is not None:
        if overrides.default_prompt_name and overrides.default_prompt_name not in prompts:
            raise ModelError(
                f"{extras.path.parent}: default_prompt_name that is set must be one of the prompts "
                f"{', '.join(prompts) or '(there are none)'}"
            )
        return overrides.default_prompt_name
    name = extras.text("default_prompt_name", default="")
    if name and name not in prompts:
        raise extras.wrong("default_prompt_name", "a key of prompts")
    return name


def _read_similarity(extras: JsonObject, *, default: Similarity) -> Similarity:
    name = extras.text("similarity_fn_name", default=default)
    try:
        return Similarity(name)
    except ValueError:
        raise extras.wrong("similarity_fn_name", "one of " + ", ".join(Similarity)) from None


def _activation_places(config: JsonObject, extras: JsonObject) -> Sequence[tuple[JsonObject, str]]:
    # In the order in which the reference looks for it.
    nested = JsonObject(path=config.path, values=config.table("sentence_transformers"))
    return (
        (extras, "activation_fn"),
        (nested, "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
    )


def _read_activation(config: JsonObject, extras: JsonObject) -> Activation:
    for where, key in _activation_places(config, extras):
        dotted = where.text(key, default="")
        if dotted:
            activation = _ACTIVATIONS.get(dotted.rpartition(".")[2])
            if activation is None or not dotted.startswith("torch."):
                raise where.wrong(key, "torch's Sigmoid or Identity")
            return activation
    return Activation.SIGMOID


def _find_padding_side(model_type: str, tokenizer_config: JsonObject) -> PaddingSide:
    side = tokenizer_config.text("padding_side", default="right")
    if side not in {"left", "right"}:
        raise tokenizer_config.wrong("padding_side", "left or right")
    # These number positions from the left edge of the batch: padding there would shift a text's
    # positions, and its vector would depend on what it is batched with.
    return "right" if model_type in EDGE_POSITIONS else cast("PaddingSide", side)


def _find_pad_token_id(folder: Path, config: JsonObject, tokenizer_config: JsonObject) -> int:
    # Padding is masked out; only graphs that number positions look at it, and they know the
    # id of config.json.
    pad_token_id = config.count("pad_token_id")
    if pad_token_id is not None:
        return pad_token_id
    token = tokenizer_config.values.get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and (folder / "tokenizer.json").exists():
        tokenizer = JsonObject.read(folder / "tokenizer.json")
        for added in tokenizer.values.get("added_tokens") or ():
            if added.get("content") == content:
                return int(added["id"])
    raise ModelError(
        f"{config.path}: pad_token_id must be the id of the padding token; set pad_token_id for "
        "this model in the configuration"
    )
