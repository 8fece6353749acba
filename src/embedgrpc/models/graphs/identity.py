"""Finds the weights that a graph is made from, and identifies it by them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from embedgrpc.models.errors import ModelError
from embedgrpc.models.files.json_file import JsonObject
from embedgrpc.models.files.model_file import hash_file
from embedgrpc.models.folder.config_keys import judge_config
from embedgrpc.models.folder.key_verdicts import check_keys
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.cache import load_or_build
from embedgrpc.models.graphs.content_hash import describe_encoder, digest, hash_meaning
from embedgrpc.models.graphs.encoders.model_types import INPUTS
from embedgrpc.models.sources.fetching import fetch_external, fetch_weights
from embedgrpc.models.sources.source import ModelFiles
from embedgrpc.models.sources.weight_file import (
    SAFETENSORS_NAME,
    Format,
    WeightFile,
    find_external,
    find_listed_weights,
    find_weight_file,
)
from embedgrpc.models.tensors.layer_weights import LAYER_WEIGHTS, find_layer_weights
from embedgrpc.models.tokenizers.token_types import needs_types

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """The files that a graph is made from, and the hashes that identify it.

    Attributes:
        weight_file: The file of weights.
        external: Further files that hold weights of `weight_file`.
        weights_digest: The SHA-256 of all weights, in hexadecimal.
        content_hash: See `Graph` in the module `graph`.
    """

    weight_file: WeightFile
    external: tuple[Path, ...]
    weights_digest: str
    content_hash: str


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
    weight_file = _find_weights(files, properties)
    _fetch_layers(files, properties)
    facts = _read_facts(weight_file, cache_dir, may_build=may_build)
    if facts is not None and "token_type_ids" not in facts["inputs"] and needs_types(properties):
        # The export would take both texts of a pair for one.
        weight_file, facts = _replace_export(files, properties, weight_file), None
        properties = _judge_again(properties)
    external = _find_externals(files, weight_file, facts)
    weights_digest = digest(
        [
            weight_file.digest,
            *(hash_file(path, properties.folder) for path in external),
            *_layer_digests(properties),
            *_head_digests(properties),
            *([properties.adapter.digest] if properties.adapter else []),
        ]
    )
    return Identity(
        weight_file,
        external,
        weights_digest,
        hash_meaning(properties, weights_digest, encoder=describe_encoder(weight_file, properties)),
    )


def _find_weights(files: ModelFiles, properties: ModelProperties) -> WeightFile:
    """Return the file of weights, downloaded if necessary, and hashed."""
    listed = properties.weight_table
    if listed is not None and listed.is_listed:
        return find_listed_weights(listed.folder, properties.folder, file=listed.file)
    folder = properties.transformer_folder
    fetch_weights(files, folder, file=properties.file)
    return find_weight_file(folder, properties.folder, file=properties.file)


def _judge_again(properties: ModelProperties) -> ModelProperties:
    """Judge the keys of `config.json` for a graph that is built from it.

    Raises:
        ModelError: A key is refused, or unknown and not accepted.
    """
    config = JsonObject(properties.transformer_folder / "config.json", properties.config)
    accepted = check_keys(
        judge_config(config, is_built=True),
        properties.folder,
        accept_unknown=properties.accepts_unknown_keys,
    )
    return replace(properties, accepted_keys={**properties.accepted_keys, **accepted})


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
    buildable = properties.model_type in INPUTS and not properties.file
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


def _fetch_layers(files: ModelFiles, properties: ModelProperties) -> None:
    """Download the weights of layers that are in the backbone's file, beside an export.

    Those with a folder of their own have been downloaded before.
    """
    if files.repository is None:
        return
    for layer in properties.dense_layers:
        place = PurePosixPath(layer.folder.relative_to(files.folder))
        names = [str(place / name) for name in LAYER_WEIGHTS]
        files.fetch([name for name in names if files.has(name)][:1])


def _layer_digests(properties: ModelProperties) -> list[str]:
    """Return the digests of the weights of the modules after pooling."""
    return [
        hash_file(find_layer_weights(layer), properties.folder) for layer in properties.dense_layers
    ]


def _head_digests(properties: ModelProperties) -> list[str]:
    """Return the digests of the weights of the sparse and multi-vector heads."""
    heads = (properties.sparse_head, properties.multi_vector_head)
    return [hash_file(head.path, properties.folder) if head else "" for head in heads if any(heads)]
