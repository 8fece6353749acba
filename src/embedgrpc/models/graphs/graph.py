"""Turns a model's files into a graph on disk that ONNX Runtime loads."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedgrpc.machine.int8_products import saturates
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.graphs.cache import MANIFEST_NAME, load_or_build
from embedgrpc.models.graphs.content_hash import describe_build, digest
from embedgrpc.models.graphs.identity import identify
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.progress import reporter
from embedgrpc.models.sources.source import ModelFiles

# The bytes that building writes, for each byte of the weights; a converted graph is written twice.
_BYTES_WRITTEN = {WeightType.FLOAT32: 1.0, WeightType.FLOAT16: 1.5, WeightType.INT8: 1.25}
# Raise it with every change that makes another graph of the same files.
_BUILDER_VERSION = 9


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
    build_options = describe_build(weight_file, properties)
    key_parts = [str(_BUILDER_VERSION), identity.weights_digest, build_options]
    if properties.weight_type is WeightType.INT8:
        # It is built with the activations of some texts, so it depends on the tokenizer too.
        key_parts.append(identity.content_hash)
        if saturates():
            key_parts.append("uint8")
    key = digest(key_parts)

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
