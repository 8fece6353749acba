"""A fixture's own graph behind KServe's protocol."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedgrpc.backends.base import PaddedBatch
from embedgrpc.backends.onnx import OnnxBackend
from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import Graph, prepare
from embedgrpc.models.graphs.output_sizes import output_sizes
from embedgrpc.models.sources.source import resolve
from embedgrpc.server.settings.model_settings import ModelSettings
from tests.backends.triton.kserve_server import Array, KServeServer
from tests.server.service import FIXTURES


class Upstream:
    """A KServe server that runs a fixture's own graph."""

    def __init__(self, server: KServeServer, graph: Graph, folder: Path) -> None:
        self.server = server
        self.graph = graph
        self.folder = folder

    def settings(self, **changes: Any) -> ModelSettings:
        """The model as it is served from here."""
        return ModelSettings(
            **{"id": "far", "source": f"triton:{self.server.address}/m", **changes}
        )


@contextmanager
def serving_upstream(cache_dir: Path, name: str = "bert-cls") -> Iterator[Upstream]:
    """Runs a fixture, with the description that `embedgrpc triton-repo` writes."""
    folder = FIXTURES / name
    files = resolve(str(folder))
    described = read(files)
    graph = prepare(files, described, cache_dir=cache_dir)
    backend = OnnxBackend(graph.path, device="cpu", intra_op_threads=1)

    def run(ids: Array, mask: Array, types: Array) -> Mapping[str, Array]:
        return backend.run(PaddedBatch(ids, mask, types, graph.outputs))

    with KServeServer(run) as server:
        sizes = output_sizes(described)
        server.outputs = [
            (name, "FP32", [size or -1 for size in sizes[name]]) for name in graph.outputs
        ]
        server.parameters = {
            "embedgrpc_source": str(folder),
            "embedgrpc_fingerprint": graph.content_hash,
        }
        yield Upstream(server, graph, folder)
