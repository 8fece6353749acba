"""From a model's files to a graph on disk that ONNX Runtime loads."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedgrpc.models.files.model_file import hash_file
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.cache import MANIFEST_NAME, load_or_build
from embedgrpc.models.sources.fetching import fetch_external, fetch_weights
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import Format, WeightFile, find_external, find_weight_file
from embedgrpc.models.tensors.layer_weights import find_layer_weights
from embedgrpc.models.tokenizers.tokenizer_class import find_changes

# To be raised whenever the same files are to give another graph.
_BUILDER_VERSION = 2
# The sizes follow from the weights; the rest of the file says who made it, and how.
_ENCODER_KEYS = (
    "model_type", "hidden_act", "activation", "layer_norm_eps", "num_attention_heads", "n_heads",
    "num_hidden_layers", "n_layers", "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph on disk, with the model's head and its weights.

    Attributes:
        path: The ONNX file; its weights lie beside it.
        inputs: Names of its inputs, int64 [batch, tokens] each.
        outputs: Names of its outputs, as `outputs` describes them. Where an export normalises by
            itself and gives no token vectors, there is none before normalisation.
        weight_type: What most of the weights are, such as "float32".
        weight_bytes: Their size.
        content_hash: What the model's answers depend on, in hexadecimal: vectors of models with
            the same hash can be compared. Where the files lie does not matter. An export and the
            safetensors that it was made from have different ones: nothing says that they agree.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_type: str
    weight_bytes: int
    content_hash: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The ONNX file and those beside it that it keeps its weights in."""
        beside = self.path.parent.iterdir()
        return tuple(sorted(path for path in beside if path.name != MANIFEST_NAME))


@dataclass(frozen=True, slots=True)
class Identity:
    """What a graph is made from, and the hashes that tell it from others.

    Attributes:
        weight_file: The file of weights.
        external: Files in which that file keeps weights.
        weights_digest: The SHA-256 of all weights, in hexadecimal.
        content_hash: As that of `Graph`.
    """

    weight_file: WeightFile
    external: tuple[Path, ...]
    weights_digest: str
    content_hash: str


def prepare(
    files: ModelFiles, properties: ModelProperties, *, cache_dir: Path, may_build: bool = True
) -> Graph:
    """Makes the graph of a model, or finds it in the cache.

    Args:
        files: The model's folder.
        properties: What the model is.
        cache_dir: Where graphs are kept from one start to the next.
        may_build: Whether it may be made here, which parses the model's weights.

    Returns:
        The graph.

    Raises:
        NotBuiltError: It is not in the cache, and may not be made here.
        ModelError: The files cannot be used, or the cache cannot be written to.
    """
    identity = identify(files, properties, cache_dir=cache_dir, may_build=may_build)
    weight_file = identity.weight_file
    key = _digest([str(_BUILDER_VERSION), identity.weights_digest, _shape(weight_file, properties)])

    def build(folder: Path) -> Mapping[str, Any]:
        # The builders need the onnx package, which takes longer to load than a cached graph.
        from embedgrpc.models.graphs.build import build_graph  # noqa: PLC0415 - not on a hit

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
    """Finds a model's weights and what its answers depend on, without making its graph.

    Args:
        files: The model's folder.
        properties: What the model is.
        cache_dir: Where graphs are kept from one start to the next.
        may_build: Whether an ONNX graph may be parsed here.

    Returns:
        The weights, brought where they come from a repository, and their hashes.

    Raises:
        NotBuiltError: The cache does not say where the weights are, and it may not be found here.
        ModelError: The files cannot be used, or the cache cannot be written to.
    """
    fetch_weights(files, properties.transformer_folder, file=properties.file)
    weight_file = find_weight_file(
        properties.transformer_folder, properties.folder, file=properties.file
    )
    external = _find_externals(files, weight_file, cache_dir, may_build=may_build)
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


def _find_externals(
    files: ModelFiles, weight_file: WeightFile, cache_dir: Path, *, may_build: bool
) -> tuple[Path, ...]:
    """The files in which an ONNX graph keeps its weights."""
    if weight_file.format is not Format.ONNX:
        return ()

    def build(_folder: Path) -> Mapping[str, Any]:
        from embedgrpc.models.graphs.exports.onnx_file import (  # noqa: PLC0415 - not on a hit
            external_locations,
            load_proto,
        )

        return {"locations": external_locations(load_proto(weight_file))}

    # The names stand in the graph: the same graph always has the same.
    _, remembered = load_or_build(
        cache_dir, f"{weight_file.digest}-external", build, may_build=may_build
    )
    locations = remembered["locations"]
    fetch_external(files, weight_file, locations)
    return tuple(find_external(weight_file, name) for name in locations)


def _layer_digests(properties: ModelProperties) -> list[str]:
    """The digests of the weights of the modules after pooling."""
    return [
        hash_file(find_layer_weights(layer), properties.folder) for layer in properties.dense_layers
    ]


def _head_digests(properties: ModelProperties) -> list[str]:
    """The digests of the weights that make more of the tokens than a dense vector."""
    heads = (properties.sparse_head, properties.multi_vector_head)
    return [hash_file(head.path, properties.folder) if head else "" for head in heads if any(heads)]


def _describe_splade(properties: ModelProperties) -> list[Any] | None:
    """How logits become a sparse vector."""
    splade = properties.splade
    return [splade.strategy, splade.logarithms] if splade else None


def _describe_layers(properties: ModelProperties) -> list[Any]:
    """What the modules after pooling are, wherever they lie."""
    return [
        [type(layer).__name__, {**asdict(layer), "folder": ""}] for layer in properties.dense_layers
    ]


def _describe_encoder(weight_file: WeightFile, properties: ModelProperties) -> Mapping[str, Any]:
    """What of `config.json` changes what is computed with the same weights."""
    if weight_file.format is Format.ONNX:
        return {}  # it stands in the graph
    return {key: properties.config[key] for key in _ENCODER_KEYS if key in properties.config}


def _shape(weight_file: WeightFile, properties: ModelProperties) -> str:
    """Everything but the weights that shapes the graph."""
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
    """Hashes what a model's answers depend on.

    Args:
        properties: What the model is; its tokenizer is read.
        weights_digest: Stands for its weights.
        encoder: What beside the weights says how its encoder computes.

    Returns:
        In hexadecimal.

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
    folder = properties.transformer_folder
    tokenizer_digest = hash_file(folder / "tokenizer.json", properties.folder)
    changes = find_changes(folder, properties.folder, properties.model_type)
    if changes:
        meaning["tokenizer"] = changes
    return _digest([weights_digest, tokenizer_digest, json.dumps(meaning, sort_keys=True)])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
