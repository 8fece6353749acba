"""Reads from a model's own files what it is and how it is to be used.

Nothing is guessed: what no file says is an error that names the file which should say it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from embedgrpc.models.errors import ModelError
from embedgrpc.models.json_file import JsonObject
from embedgrpc.models.kinds import Activation, Kind, Pooling, Similarity
from embedgrpc.models.limits import find_max_tokens, read_transformer_settings
from embedgrpc.models.modules import Pipeline, read_pipeline
from embedgrpc.models.source import ModelFiles

__all__ = ["Activation", "Kind", "ModelMetadata", "PaddingSide", "Pooling", "Similarity", "read"]

PaddingSide = Literal["left", "right"]

_CLASSIFIER = "ForSequenceClassification"
_ACTIVATIONS = {"Sigmoid": Activation.SIGMOID, "Identity": Activation.IDENTITY}
_MODEL_TYPES = {
    "SentenceTransformer": Kind.EMBEDDING,
    "CrossEncoder": Kind.CROSS_ENCODER,
}


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model is and how it is to be used.

    Attributes:
        kind: What it answers with.
        model_type: The architecture, as `config.json` names it.
        poolings: In order of concatenation; empty for a cross-encoder.
        normalize: Whether its vectors are scaled to length 1.
        dimensions: Values per vector; 0 for a cross-encoder.
        max_tokens: The longest sequence, special tokens included.
        prompts: Text to put in front of a text, by name.
        default_prompt_name: The prompt to take where none is asked for; empty for no prompt.
        similarity: How two vectors are meant to be compared.
        activation: What turns a cross-encoder's logit into its score.
        padding_side: Where padding goes.
        pad_token_id: The token that fills it.
        config: `config.json`.
        lowercase: Whether texts are lowercased before anything else.
    """

    kind: Kind
    model_type: str
    poolings: tuple[Pooling, ...]
    normalize: bool
    dimensions: int
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt_name: str
    similarity: Similarity
    activation: Activation
    padding_side: PaddingSide
    pad_token_id: int
    config: Mapping[str, Any]
    lowercase: bool = False


def read(files: ModelFiles) -> ModelMetadata:
    """Reads the metadata of a model.

    Args:
        files: The model's folder.

    Returns:
        What its files say.

    Raises:
        ModelError: A file is missing or wrong, or asks for what is not supported.
    """
    folder = files.folder
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder / 'config.json'} is missing: the folder holds no model")
    config = JsonObject.read(folder / "config.json")
    extras = JsonObject.read_if_present(folder / "config_sentence_transformers.json")
    tokenizer_config = JsonObject.read_if_present(folder / "tokenizer_config.json")
    model_type = config.text("model_type", default="")
    if not model_type:
        raise config.wrong("model_type", "the name of an architecture")
    pipeline = _read_pipeline_if_present(folder)
    kind = _find_kind(config, extras, pipeline)
    settings = read_transformer_settings(folder)
    prompts = _read_prompts(extras)
    return ModelMetadata(
        kind=kind,
        model_type=model_type,
        poolings=pipeline.poolings,
        normalize=pipeline.normalize,
        dimensions=pipeline.token_dimensions * len(pipeline.poolings),
        max_tokens=find_max_tokens(settings, config, tokenizer_config),
        prompts=prompts,
        default_prompt_name=_read_default_prompt_name(extras, prompts),
        similarity=_read_similarity(extras),
        activation=_read_activation(config, extras),
        padding_side=_read_padding_side(tokenizer_config),
        pad_token_id=_find_pad_token_id(folder, config, tokenizer_config),
        config=config.values,
        lowercase=settings.lowercase,
    )


def _read_pipeline_if_present(folder: Path) -> Pipeline:
    if (folder / "modules.json").exists():
        return read_pipeline(folder)
    return Pipeline(poolings=(), token_dimensions=0, normalize=False)


def _find_kind(config: JsonObject, extras: JsonObject, pipeline: Pipeline) -> Kind:
    named = extras.text("model_type", default="")
    if named and named not in _MODEL_TYPES:
        raise ModelError(f"{extras.path}: model_type {named!r} is not supported")
    if pipeline.poolings:
        if named and _MODEL_TYPES[named] is not Kind.EMBEDDING:
            raise ModelError(f"{extras.path}: model_type {named!r} contradicts the Pooling module")
        _check_token_dimensions(config, pipeline)
        return Kind.EMBEDDING
    architectures = config.values.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise config.wrong("architectures", "a list of names")
    if any(name.endswith(_CLASSIFIER) for name in architectures):
        _check_one_label(config)
        return Kind.CROSS_ENCODER
    modules = config.path.parent / "modules.json"
    if modules.exists():
        raise ModelError(f"{modules} has no Pooling module: it says how token vectors are pooled")
    raise ModelError(f"{modules} is missing: it says how token vectors are pooled")


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


def _read_default_prompt_name(extras: JsonObject, prompts: Mapping[str, str]) -> str:
    name = extras.text("default_prompt_name", default="")
    if name and name not in prompts:
        raise extras.wrong("default_prompt_name", "a key of prompts")
    return name


def _read_similarity(extras: JsonObject) -> Similarity:
    name = extras.text("similarity_fn_name", default=Similarity.COSINE)
    try:
        return Similarity(name)
    except ValueError:
        raise extras.wrong("similarity_fn_name", "one of " + ", ".join(Similarity)) from None


def _read_activation(config: JsonObject, extras: JsonObject) -> Activation:
    # In the order in which the reference looks for it.
    nested = JsonObject(path=config.path, values=config.table("sentence_transformers"))
    places = (
        (extras, "activation_fn"),
        (nested, "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
    )
    for where, key in places:
        dotted = where.text(key, default="")
        if dotted:
            activation = _ACTIVATIONS.get(dotted.rpartition(".")[2])
            if activation is None or not dotted.startswith("torch."):
                raise where.wrong(key, "torch's Sigmoid or Identity")
            return activation
    return Activation.SIGMOID


def _read_padding_side(tokenizer_config: JsonObject) -> PaddingSide:
    side = tokenizer_config.text("padding_side", default="right")
    if side not in {"left", "right"}:
        raise tokenizer_config.wrong("padding_side", "left or right")
    return cast("PaddingSide", side)


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
    raise config.wrong("pad_token_id", "the id of the padding token")
