"""From a model's files to a graph on disk that ONNX Runtime loads."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedgrpc.models.cache import load_or_build
from embedgrpc.models.metadata import ModelMetadata
from embedgrpc.models.origin import Format, Origin, find_external, find_origin, hash_file
from embedgrpc.models.source import ModelFiles

# To be raised whenever the same files are to give another graph.
_BUILDER_VERSION = 1


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph on disk, with the model's head and its weights.

    Attributes:
        path: The ONNX file; its weights lie beside it.
        inputs: Names of its inputs, int64 [batch, tokens] each.
        outputs: Names of its outputs: `sentence_embedding`, float32 [batch, dimensions], and
            `pooled_embedding` before normalisation where the model normalises; or `logits`,
            float32 [batch, 1].
        weight_type: What most of the weights are, such as "float32".
        weight_bytes: Their size.
        content_hash: What the model's answers depend on, in hexadecimal: vectors of models with
            the same hash can be compared. Where the files lie does not matter.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_type: str
    weight_bytes: int
    content_hash: str


def prepare(files: ModelFiles, metadata: ModelMetadata, *, cache_dir: Path) -> Graph:
    """Makes the graph of a model, or finds it in the cache.

    Args:
        files: The model's folder.
        metadata: What the model is.
        cache_dir: Where graphs are kept from one start to the next.

    Returns:
        The graph.

    Raises:
        ModelError: The files cannot be used, or the cache cannot be written to.
    """
    origin = find_origin(files)
    weights_digest = _digest([origin.digest, *_external_digests(origin, cache_dir)])
    key = _digest([str(_BUILDER_VERSION), weights_digest, _shape(origin, metadata)])

    def build(folder: Path) -> Mapping[str, Any]:
        # The builders need the onnx package, which takes longer to load than a cached graph.
        from embedgrpc.models.build import build_graph  # noqa: PLC0415 - not on a hit

        return asdict(build_graph(origin, metadata, folder))

    folder, built = load_or_build(cache_dir, key, build)
    return Graph(
        path=folder / "model.onnx",
        inputs=tuple(built["inputs"]),
        outputs=tuple(built["outputs"]),
        weight_type=built["weight_type"],
        weight_bytes=built["weight_bytes"],
        content_hash=_content_hash(files, metadata, weights_digest),
    )


def _external_digests(origin: Origin, cache_dir: Path) -> list[str]:
    """The digests of the files in which an ONNX graph keeps its weights."""
    if origin.format is not Format.ONNX:
        return []

    def build(_folder: Path) -> Mapping[str, Any]:
        from embedgrpc.models.imported import (  # noqa: PLC0415 - not on a hit
            external_locations,
            load_proto,
        )

        return {"locations": external_locations(load_proto(origin))}

    # The names stand in the graph: the same graph always has the same.
    _, remembered = load_or_build(cache_dir, f"{origin.digest}-external", build)
    return [hash_file(find_external(origin, name)) for name in remembered["locations"]]


def _shape(origin: Origin, metadata: ModelMetadata) -> str:
    """Everything but the weights that shapes the graph."""
    return json.dumps(
        {
            "format": origin.format,
            "kind": metadata.kind,
            "poolings": metadata.poolings,
            "normalize": metadata.normalize,
            "dimensions": metadata.dimensions,
            "pad_token_id": metadata.pad_token_id,
            "config": metadata.config,
        },
        sort_keys=True,
    )


def _content_hash(files: ModelFiles, metadata: ModelMetadata, weights_digest: str) -> str:
    meaning = {
        "kind": metadata.kind,
        "poolings": metadata.poolings,
        "normalize": metadata.normalize,
        "prompts": dict(metadata.prompts),
        "default_prompt_name": metadata.default_prompt_name,
        "activation": metadata.activation,
        "lowercase": metadata.lowercase,
    }
    tokenizer_digest = hash_file(files.folder / "tokenizer.json")
    return _digest([weights_digest, tokenizer_digest, json.dumps(meaning, sort_keys=True)])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
