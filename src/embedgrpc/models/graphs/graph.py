"""Turns a model's files into a graph on disk that ONNX Runtime loads."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.model_file import hash_file
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file
from embedgrpc.models.graphs.cache import MANIFEST_NAME, load_or_build
from embedgrpc.models.graphs.encoders.families import FAMILIES
from embedgrpc.models.kinds import Truncation, WeightType
from embedgrpc.models.progress import reporter
from embedgrpc.models.sources.fetching import fetch_external, fetch_weights
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import (
    SAFETENSORS_NAME,
    Format,
    WeightFile,
    find_external,
    find_weight_file,
)
from embedgrpc.models.tensors.layer_weights import find_layer_weights
from embedgrpc.models.tokenizers.added_tokens import read_tokenizer_settings
from embedgrpc.models.tokenizers.chat_template import read_chat_template
from embedgrpc.models.tokenizers.token_types import needs_types

# The bytes that building writes, for each byte of the weights; a converted graph is written twice.
_BYTES_WRITTEN = {WeightType.FLOAT32: 1.0, WeightType.FLOAT16: 1.5, WeightType.INT8: 1.25}
_logger = logging.getLogger(__name__)
# Raise it with every change that makes another graph of the same files.
_BUILDER_VERSION = 4
# The keys of config.json that change what is computed. Sizes follow from the weights; the other
# keys say who made the model, and how.
_ENCODER_KEYS = (
    "model_type", "hidden_act", "activation", "layer_norm_eps", "num_attention_heads", "n_heads",
    "num_hidden_layers", "n_layers", "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph on disk, with the model's head and its weights.

    Attributes:
        path: The ONNX file; its weights lie beside it.
        inputs: Names of its inputs, int64 [batch, tokens] each; of `task_id` int64 [batch].
        outputs: Names of its outputs; see the module `outputs`. An export that normalises by itself
            and has no token vectors lacks the vector before normalisation.
        weight_type: The type of most of the weights, such as "float32".
        weight_bytes: The size of the weights.
        content_hash: A hash of everything that the model's answers depend on, in hexadecimal:
            vectors of models with the same hash can be compared. It does not depend on where the
            files lie. An export and the safetensors that it was made from have different hashes:
            nothing proves that they agree.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_type: str
    weight_bytes: int
    content_hash: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The ONNX file and the files of its weights."""
        beside = self.path.parent.iterdir()
        return tuple(sorted(path for path in beside if path.name != MANIFEST_NAME))


@dataclass(frozen=True, slots=True)
class Identity:
    """The files that a graph is made from, and the hashes that identify it.

    Attributes:
        weight_file: The file of weights.
        external: Further files that hold weights of `weight_file`.
        weights_digest: The SHA-256 of all weights, in hexadecimal.
        content_hash: See `Graph`.
    """

    weight_file: WeightFile
    external: tuple[Path, ...]
    weights_digest: str
    content_hash: str


def prepare(
    files: ModelFiles, properties: ModelProperties, *, cache_dir: Path, may_build: bool = True
) -> Graph:
    """Return the graph of a model from the cache, or build it.

    Args:
        files: The model's folder.
        properties: The model's properties.
        cache_dir: The folder that keeps graphs from one start to the next.
        may_build: Whether this process may build it, and so parse the model's weights.

    Raises:
        NotBuiltError: The graph is not in the cache and may not be built here.
        ModelError: The files cannot be used, or the cache cannot be written to.
    """
    identity = identify(files, properties, cache_dir=cache_dir, may_build=may_build)
    weight_file = identity.weight_file
    build_options = _describe_build(weight_file, properties)
    key = _digest([str(_BUILDER_VERSION), identity.weights_digest, build_options])

    def build(folder: Path) -> Mapping[str, Any]:
        # The builders import the onnx package, which takes longer than loading a cached graph.
        from embedgrpc.models.graphs.build import build_graph  # noqa: PLC0415 - not on a hit

        size = sum(path.stat().st_size for path in (weight_file.path, *identity.external))
        with reporter.task("building graph", int(size * _BYTES_WRITTEN[properties.weight_type])):
            return asdict(build_graph(weight_file, properties, folder))

    folder, built = load_or_build(cache_dir, key, build, may_build=may_build)
    return Graph(
        path=folder / "model.onnx",
        inputs=tuple(built["inputs"]),
        outputs=tuple(built["outputs"]),
        weight_type=built["weight_type"],
        weight_bytes=built["weight_bytes"],
        content_hash=identity.content_hash,
    )


def identify(
    files: ModelFiles, properties: ModelProperties, *, cache_dir: Path, may_build: bool = True
) -> Identity:
    """Find and hash a model's weights, without building its graph.

    Args:
        files: The model's folder; weights are downloaded to it if it comes from a repository.
        properties: The model's properties.
        cache_dir: The folder that keeps graphs from one start to the next.
        may_build: Whether this process may parse an ONNX graph.

    Raises:
        NotBuiltError: The cache does not say which files hold the weights, and this process may
            not find out.
        ModelError: The files cannot be used, or the cache cannot be written to.
    """
    fetch_weights(files, properties.transformer_folder, file=properties.file)
    weight_file = find_weight_file(
        properties.transformer_folder, properties.folder, file=properties.file
    )
    facts = _read_facts(weight_file, cache_dir, may_build=may_build)
    if facts is not None and "token_type_ids" not in facts["inputs"] and needs_types(properties):
        # The export would take both texts of a pair for one.
        weight_file, facts = _replace_export(files, properties, weight_file), None
    external = _find_externals(files, weight_file, facts)
    weights_digest = _digest(
        [
            weight_file.digest,
            *(hash_file(path, properties.folder) for path in external),
            *_layer_digests(properties),
            *_head_digests(properties),
        ]
    )
    return Identity(
        weight_file,
        external,
        weights_digest,
        _content_hash(weight_file, properties, weights_digest),
    )


def _replace_export(
    files: ModelFiles, properties: ModelProperties, export: WeightFile
) -> WeightFile:
    """Return the safetensors beside an export that lacks an input.

    Raises:
        ModelError: There are none, no graph can be built from them, or the configuration names
            the export.
    """
    folder = properties.transformer_folder
    place = folder.relative_to(files.folder)
    buildable = properties.model_type in FAMILIES and not properties.file
    name = SAFETENSORS_NAME if buildable and files.has(str(place / SAFETENSORS_NAME)) else ""
    if not name:
        raise ModelError(
            f"{export.path}: the graph has no input 'token_type_ids', which the model needs "
            f"(config.json: type_vocab_size) and its tokenizer fills: export it again with this "
            f"input, or put {SAFETENSORS_NAME} beside it"
        )
    fetch_weights(files, folder, file=name)
    _logger.info(
        "using safetensors, as the export has no input token_type_ids",
        extra={"entry": str(export.path)},
    )
    return find_weight_file(folder, properties.folder, file=name)


def _read_facts(
    weight_file: WeightFile, cache_dir: Path, *, may_build: bool
) -> Mapping[str, Any] | None:
    """Return the inputs of an ONNX graph and its external files; None for other weights."""
    if weight_file.format is not Format.ONNX:
        return None

    def build(_folder: Path) -> Mapping[str, Any]:
        from embedgrpc.models.graphs.exports.onnx_file import (  # noqa: PLC0415 - not on a hit
            external_locations,
            input_names,
            load_proto,
        )

        model = load_proto(weight_file)
        return {"locations": external_locations(model), "inputs": input_names(model)}

    # The names are part of the graph, so they hold for every file with its digest.
    _, facts = load_or_build(cache_dir, f"{weight_file.digest}-facts", build, may_build=may_build)
    return facts


def _find_externals(
    files: ModelFiles, weight_file: WeightFile, facts: Mapping[str, Any] | None
) -> tuple[Path, ...]:
    """Return the external files that hold weights of an ONNX graph."""
    if facts is None:
        return ()
    locations = facts["locations"]
    fetch_external(files, weight_file, locations)
    return tuple(find_external(weight_file, name) for name in locations)


def _layer_digests(properties: ModelProperties) -> list[str]:
    """Return the digests of the weights of the modules after pooling."""
    return [
        hash_file(find_layer_weights(layer), properties.folder) for layer in properties.dense_layers
    ]


def _head_digests(properties: ModelProperties) -> list[str]:
    """Return the digests of the weights of the sparse and multi-vector heads."""
    heads = (properties.sparse_head, properties.multi_vector_head)
    return [hash_file(head.path, properties.folder) if head else "" for head in heads if any(heads)]


def _describe_splade(properties: ModelProperties) -> list[Any] | None:
    """Describe how logits become a sparse vector."""
    splade = properties.splade
    return [splade.strategy, splade.logarithms] if splade else None


def _describe_layers(properties: ModelProperties) -> list[Any]:
    """Describe the modules after pooling, without their folders."""
    return [
        [type(layer).__name__, {**asdict(layer), "folder": ""}] for layer in properties.dense_layers
    ]


def _describe_encoder(weight_file: WeightFile, properties: ModelProperties) -> Mapping[str, Any]:
    """Return the keys of `config.json` that change what is computed with the same weights."""
    if weight_file.format is Format.ONNX:
        return {}  # the graph holds them
    return {key: properties.config[key] for key in _ENCODER_KEYS if key in properties.config}


def _describe_build(weight_file: WeightFile, properties: ModelProperties) -> str:
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
            "pad_token_id": properties.pad_token_id,
            "output": properties.output,
            "task_id": properties.task_id,
            "weight_type": properties.weight_type,
            "config": properties.config,
        },
        sort_keys=True,
    )


def _content_hash(weight_file: WeightFile, properties: ModelProperties, weights_digest: str) -> str:
    return hash_meaning(
        properties, weights_digest, encoder=_describe_encoder(weight_file, properties)
    )


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
    if properties.max_active_dims:
        meaning["max_active_dims"] = properties.max_active_dims
    if properties.accepted_keys:
        meaning["accepted_keys"] = dict(properties.accepted_keys)
    if properties.tasks:
        meaning["tasks"] = dict(properties.tasks)
    if properties.truncation is not Truncation.END:
        meaning["truncation"] = properties.truncation
    folder = properties.transformer_folder
    tokenizer_digest = hash_file(find_tokenizer_file(folder), properties.folder)
    settings = read_tokenizer_settings(folder, properties.folder)
    meaning["tokenizer"] = settings.describe()
    template = read_chat_template(properties)
    if template is not None:
        meaning["chat_template"] = [template.text, template.has_parts]
    return _digest([weights_digest, tokenizer_digest, json.dumps(meaning, sort_keys=True)])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
