"""The models that the tests' tritonserver serves."""

from collections.abc import Sequence
from pathlib import Path

from embedgrpc.models.folder.properties import read
from embedgrpc.models.graphs.graph import prepare
from embedgrpc.models.sources.source import resolve
from embedgrpc.triton_repository.config import RepositoryModel
from embedgrpc.triton_repository.execution import Execution, Processor
from embedgrpc.triton_repository.writing import write_model
from tests.models.runner import DEFAULT_MODEL, FIXTURES

# Dense; dense with modules after pooling; dense, sparse and multi-vector; sparse; a cross-encoder;
# the default model.
FOLDERS = ("bert-mean", "gemma-dense", "xlmr-bge-m3", "splade-bert", "cross-bert")
SOURCES = {name: str(FIXTURES / name) for name in FOLDERS} | {"minilm": DEFAULT_MODEL}
CPU = Execution(processor=Processor.CPU, cores=1, max_batch_size=16)


def prepare_model(name: str, cache_dir: Path) -> RepositoryModel:
    """Prepare one of the models for a repository."""
    files = resolve(SOURCES[name])
    properties = read(files)
    graph = prepare(files, properties, cache_dir=cache_dir)
    return RepositoryModel(name, files.pinned_source, properties, graph)


def write_repository(
    folder: Path,
    cache_dir: Path,
    *,
    names: Sequence[str] = tuple(SOURCES),
    execution: Execution = CPU,
) -> None:
    """Write models as `embedgrpc triton-repo` does."""
    for name in names:
        write_model(folder, prepare_model(name, cache_dir), execution)
