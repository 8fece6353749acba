"""Hashes everything that a model's answers depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from embedgrpc.models.files.model_file import hash_file
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file
from embedgrpc.models.graphs.encoders.decoder_families import CAP_KEY, DECODERS
from embedgrpc.models.graphs.encoders.rotary_families import ROTARY_FAMILIES
from embedgrpc.models.kinds import Kind, TextRole, Truncation, WeightType
from embedgrpc.models.sources.weight_file import Format, WeightFile
from embedgrpc.models.tokenizers.added_tokens import read_tokenizer_settings
from embedgrpc.models.tokenizers.chat_template import read_chat_template

# The keys of config.json that change what is computed. Sizes follow from the weights; the other
# keys say who made the model, and how.
_ENCODER_KEYS = (
    "model_type", "hidden_act", "activation", "layer_norm_eps", "num_attention_heads", "n_heads",
    "num_hidden_layers", "n_layers", "pad_token_id",
)  # fmt: skip
# Those of decoders in addition.
_DECODER_KEYS = (
    "hidden_activation", "rms_norm_eps", "num_key_value_heads", "head_dim", "attention_bias",
    "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq",
    "max_position_embeddings", "use_sliding_window", "sliding_window", "sliding_window_pattern",
    "max_window_layers", "layer_types", "is_causal", "use_bidirectional_attention",
    "query_pre_attn_scalar",
)  # fmt: skip
# Those of encoders with rotary positions in addition.
_ROTARY_KEYS = (
    "hidden_activation", "norm_eps", "layer_norm_epsilon", "n_head", "n_layer", "attention_bias",
    "mlp_bias", "norm_bias", "layer_types", "global_attn_every_n_layers", "local_attention",
    "global_rope_theta", "local_rope_theta", "rope_theta", "rope_scaling", "rope_parameters",
    "rotary_emb_base", "max_position_embeddings", "type_vocab_size", "classifier_pooling",
    "classifier_activation", "classifier_bias", "decoder_bias",
)  # fmt: skip


def describe_build(weight_file: WeightFile, properties: ModelProperties) -> str:
    """Return everything but the weights that the graph depends on, as JSON."""
    return json.dumps(
        {
            "format": weight_file.format,
            "kind": properties.kind,
            "poolings": properties.poolings,
            "normalize": properties.normalize,
            "dimensions": properties.dimensions,
            "layers": _describe_layers(properties),
            "representations": properties.representations,
            "splade": _describe_splade(properties),
            "late_interaction": _describe_late_interaction(properties),
            "pad_token_id": properties.pad_token_id,
            "output": properties.output,
            "task_id": properties.task_id,
            "weight_type": properties.weight_type,
            "logit_score": _describe_logit_score(properties),
            "config": properties.config,
            **_describe_table(properties),
            **_describe_weight_table(properties),
            **({} if properties.include_prompt else {"include_prompt": False}),
        },
        sort_keys=True,
    )


def _describe_rare(properties: ModelProperties) -> dict[str, Any]:
    """Describe what few models have; what a model lacks leaves its hash as it was before."""
    rare = {
        "max_active_dims": properties.max_active_dims,
        "truncate_dim": properties.truncate_dim,
        "accepted_keys": dict(properties.accepted_keys),
        "adapter": properties.adapter and properties.adapter.describe(),
        "logit_score": properties.logit_score and _describe_logit_score(properties),
        "late_interaction": _describe_late_interaction(properties),
        "looks_up_weights": properties.weight_table is not None,
        "excludes_prompt": not properties.include_prompt,
        "tasks": dict(properties.tasks),
        "truncation": "" if properties.truncation is Truncation.END else properties.truncation,
        # Earlier int8 graphs had one scale for a whole batch.
        "activation_scales": "tokens" if properties.weight_type is WeightType.INT8 else "",
        # Earlier ones had token vectors in float32.
        "token_table": "float16"
        if properties.weight_type is WeightType.INT8 and properties.table is None
        else "",
    }
    return {name: value for name, value in rare.items() if value}


def hash_meaning(
    properties: ModelProperties, weights_digest: str, *, encoder: Mapping[str, Any]
) -> str:
    """Hash everything that a model's answers depend on.

    Args:
        properties: The model's properties; its tokenizer is read.
        weights_digest: A digest of its weights.
        encoder: The keys of `config.json` that change what the encoder computes.

    Returns:
        The hash, in hexadecimal.

    Raises:
        ModelError: The tokenizer cannot be read.
    """
    meaning = {
        "kind": properties.kind,
        "config": encoder,
        "poolings": properties.poolings,
        "normalize": properties.normalize,
        "representations": properties.representations,
        "splade": _describe_splade(properties),
        "unweighted_token_ids": sorted(properties.unweighted_token_ids),
        "multi_vector_skip_tokens": properties.multi_vector_skip_tokens,
        "layers": _describe_layers(properties),
        "output": properties.output,
        "task_id": properties.task_id,
        "weight_type": properties.weight_type,
        "max_tokens": properties.max_tokens,
        "prompts": dict(properties.prompts),
        "default_prompt_name": properties.default_prompt_name,
        "activation": properties.activation,
        "lowercase": properties.lowercase,
    }
    meaning |= _describe_labels(properties)
    meaning |= _describe_rare(properties)
    folder = properties.transformer_folder
    tokenizer_digest = hash_file(find_tokenizer_file(folder), properties.folder)
    if properties.table is not None:
        meaning |= _describe_table(properties)
        return digest([weights_digest, tokenizer_digest, json.dumps(meaning, sort_keys=True)])
    settings = read_tokenizer_settings(folder, properties.folder)
    meaning["tokenizer"] = settings.describe()
    template = read_chat_template(properties)
    if template is not None:
        meaning["chat_template"] = [template.text, template.has_parts]
        if template.variables:
            meaning["chat_template_variables"] = dict(template.variables)
    return digest([weights_digest, tokenizer_digest, json.dumps(meaning, sort_keys=True)])


def hash_routes(hashes: Mapping[str, str], by_role: Mapping[TextRole | None, str]) -> str:
    """Return the hash of a model from those of its routes.

    Args:
        hashes: The hash of each route, by its name; empty for a model without a router.
        by_role: The name of the route that the texts of a role pass, None for no role.
    """
    if "" in hashes:  # the only one, of a model without a router
        return hashes[""]
    passed = {role or "": hashes[name] for role, name in by_role.items()}
    return digest(["routes", json.dumps(passed, sort_keys=True)])


def digest(parts: Sequence[str]) -> str:
    """Return the SHA-256 of several texts, in hexadecimal."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _describe_labels(properties: ModelProperties) -> Mapping[str, Any]:
    """Describe the labels of a classifier; nothing where the score of a document says it all."""
    ranks = properties.kind is Kind.CROSS_ENCODER
    if not properties.labels or (ranks and properties.score_function is properties.activation):
        return {}
    return {"labels": properties.labels, "score_function": properties.score_function}


def _describe_splade(properties: ModelProperties) -> list[Any] | None:
    """Describe how logits become a sparse vector."""
    splade = properties.splade
    return [splade.strategy, splade.logarithms] if splade else None


def _describe_late_interaction(properties: ModelProperties) -> Mapping[str, Any] | None:
    """Describe how queries and documents are computed and compared."""
    late = properties.late_interaction
    return asdict(late) if late else None


def _describe_logit_score(properties: ModelProperties) -> list[int | None] | None:
    """Describe which logits make the score of a causal model."""
    score = properties.logit_score
    return [score.true_token_id, score.false_token_id] if score else None


def _describe_table(properties: ModelProperties) -> Mapping[str, Any]:
    """Describe how the table of a static model is read; empty for other models."""
    table = properties.table
    if table is None:
        return {}
    described: dict[str, Any] = {"name": table.name, "of_model2vec": table.of_model2vec}
    if table.of_model2vec:
        # The graph drops the unknown token, whose id the tokenizer says.
        path = properties.transformer_folder / "tokenizer.json"
        described["tokenizer"] = hash_file(path, properties.folder)
    return {"table": described}


def _describe_weight_table(properties: ModelProperties) -> Mapping[str, Any]:
    """Describe the table of inference-free SPLADE; empty for other models."""
    table = properties.weight_table
    if table is None:
        return {}
    described: dict[str, Any] = {"looks_up_weights": True}
    if table.is_listed:
        # The file names tokens, and the tokenizer their ids.
        folder = properties.transformer_folder
        described["tokenizer"] = hash_file(find_tokenizer_file(folder), properties.folder)
        described["tokens"] = read_tokenizer_settings(folder, properties.folder).describe()
    return described


def _describe_layers(properties: ModelProperties) -> list[Any]:
    """Describe the modules after pooling, without their folders."""
    return [
        [type(layer).__name__, {**asdict(layer), "folder": ""}] for layer in properties.dense_layers
    ]


def describe_encoder(weight_file: WeightFile, properties: ModelProperties) -> Mapping[str, Any]:
    """Return the keys of `config.json` that change what is computed with the same weights."""
    if weight_file.format is Format.ONNX:
        return {}  # the graph holds them
    keys: tuple[str, ...] = _ENCODER_KEYS
    if properties.model_type in DECODERS:
        keys += _DECODER_KEYS
    elif properties.model_type in ROTARY_FAMILIES:
        keys += _ROTARY_KEYS
    if properties.logit_score:
        keys = (*keys, CAP_KEY)
    return {key: properties.config[key] for key in keys if key in properties.config}
