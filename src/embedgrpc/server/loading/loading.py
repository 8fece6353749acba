"""Loads models: from their settings to something that can be called."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from embedgrpc.backends.base import Backend, BackendError, DeviceError
from embedgrpc.backends.onnx import Device, OnnxBackend
from embedgrpc.engine.scheduling.reports import BatchObserver
from embedgrpc.machine.cores import available_cores
from embedgrpc.models.errors import ModelError
from embedgrpc.models.folder.properties import ModelProperties
from embedgrpc.models.folder.routes import RoutedProperties, read_routes
from embedgrpc.models.folder.tokenizer_file import find_tokenizer_file
from embedgrpc.models.graphs import graph
from embedgrpc.models.kinds import WeightType
from embedgrpc.models.sources import source
from embedgrpc.models.sources.triton_source import is_triton_source
from embedgrpc.models.tokenizers.tokenizer import Tokenizer
from embedgrpc.models.validation.child_process import ChildGroup
from embedgrpc.models.validation.validation import FileDigests, Validation, load_validated
from embedgrpc.server.loading.assembly import assemble
from embedgrpc.server.loading.catalog import LoadedModel, ServedModel
from embedgrpc.server.loading.daemon_threads import run_in_daemon_thread
from embedgrpc.server.loading.prepared_model import (
    PreparedModel,
    PreparedRoutes,
    RunnableGraph,
    default_batch_tokens,
    overhead_tokens,
)
from embedgrpc.server.loading.started_route import start_route
from embedgrpc.server.settings.model_settings import default_model
from embedgrpc.server.settings.settings import Settings

# Half precision is slower than single on CPUs, and ONNX Runtime has no int8 products for GPUs.
_DEVICES: dict[WeightType, Device] = {WeightType.FLOAT16: "cuda", WeightType.INT8: "cpu"}

# The expected failures of loading; the message of each is one line.
LOAD_ERRORS: tuple[type[Exception], ...] = (ModelError, DeviceError, BackendError)

# Opens the graph at the path. Called off the event loop.
OpenBackend = Callable[[ServedModel, Path, Settings], Backend]


def served_models(settings: Settings) -> tuple[ServedModel, ...]:
    """Return the models to serve: those of the settings, or else the default model."""
    return tuple(ServedModel(one) for one in settings.models or (default_model(),))


def count_threads(settings: Settings) -> int:
    """Return how many CPU threads a run of a model in this process uses."""
    return settings.intra_op_threads or available_cores()


def open_onnx(model: ServedModel, graph_path: Path, settings: Settings) -> Backend:
    """Open a graph with ONNX Runtime in this process.

    Raises:
        DeviceError: The device cannot be used.
        BackendError: The graph cannot be loaded.
    """
    device = settings.device
    only = _DEVICES.get(model.settings.weight_type, device)
    if device not in ("auto", only):
        raise DeviceError(
            f"weight_type {model.settings.weight_type} runs on {only} alone: set device to {only}"
        )
    device = only
    return OnnxBackend(
        graph_path,
        device=device,
        lanes=settings.lanes,
        intra_op_threads=settings.intra_op_threads,
        spin_duration_us=settings.batch_threads.spin_duration_us,
        pin_threads=settings.batch_threads.pin_threads,
        gpu_mem_limit_bytes=settings.gpu_memory_bytes,
    )


async def load(
    model: ServedModel,
    settings: Settings,
    *,
    observers: Iterable[BatchObserver],
    resources: ExitStack,
    open_backend: OpenBackend,
) -> LoadedModel:
    """Load a model and start its threads.

    Args:
        model: The model.
        settings: The settings of the server.
        observers: Receive a report of every batch.
        resources: Closes the model; that blocks.
        open_backend: Opens its graph, unless Triton runs it.

    Raises:
        ModelError: Its files cannot be used.
        DeviceError: The device cannot be used.
        BackendUnreachableError: No server can be reached; a retry may succeed.
        BackendError: The graph cannot be loaded.
    """
    loop = asyncio.get_running_loop()
    children = ChildGroup()
    try:
        prepared = await run_in_daemon_thread(
            lambda: prepare_routes(model, settings, open_backend, loop, children)
        )
    finally:
        # Ends the child process that reads the model's files, where the load was cancelled.
        children.end()
    resources.callback(prepared.close)
    routes = {
        name: start_route(
            one, settings, model_id=model.id, observers=observers, resources=resources, loop=loop
        )
        for name, one in prepared.by_route.items()
    }
    return assemble(model, prepared, settings, routes)


def prepare_model(
    model: ServedModel, settings: Settings, open_backend: OpenBackend
) -> PreparedModel:
    """Prepare a model with one route; see `prepare_routes`.

    Raises:
        ModelError: It has several.
    """
    return prepare_routes(model, settings, open_backend).alone()


def prepare_routes(
    model: ServedModel,
    settings: Settings,
    open_backend: OpenBackend,
    loop: asyncio.AbstractEventLoop | None = None,
    children: ChildGroup | None = None,
) -> PreparedRoutes:
    """Read a model's files and open the graph of each route. Blocks for seconds or minutes.

    Args:
        model: The model.
        settings: The settings of the server.
        open_backend: Opens its graph, unless Triton runs it.
        loop: Runs the calls to Triton; None to run them in a new thread.
        children: Ends the processes that read the model's files.

    Raises:
        ModelError: Its files cannot be used.
        DeviceError: The device cannot be used.
        BackendUnreachableError: No server can be reached.
        BackendError: The graph cannot be loaded.
    """
    children = children or ChildGroup()
    if is_triton_source(model.source):
        # Most servers do without it, and its library takes longer to import than a model to load.
        from embedgrpc.server.loading.triton import prepare_on_triton  # noqa: PLC0415 - see above

        prepared = prepare_on_triton(
            model.settings,
            settings,
            loop,
            children,
            prepare_fallback=lambda: _prepare_here(
                model, model.settings.fallback, settings, open_backend, children
            ).alone(),
        )
        return PreparedRoutes.of(prepared)
    return _prepare_here(model, model.source, settings, open_backend, children)


def _prepare_here(
    model: ServedModel,
    place: str,
    settings: Settings,
    open_backend: OpenBackend,
    children: ChildGroup,
) -> PreparedRoutes:
    """Prepare a model that runs in this process, from the source `place`."""
    files = source.resolve(place, model.settings.adapter)
    escape = model.settings.escape_special_tokens
    cache_dir = settings.cache_dir

    def read(
        validated: FileDigests,
    ) -> tuple[RoutedProperties, Mapping[str, tuple[Tokenizer, graph.Graph]]]:
        found = read_routes(files, model.settings.overrides)
        parts = {}
        for name, described in found.by_route.items():
            digest = validated.digest_of(
                find_tokenizer_file(described.transformer_folder), files.folder
            )
            tokenizer = Tokenizer.load(described, escape_special_tokens=escape, digest=digest)
            built = graph.prepare(files, described, cache_dir=cache_dir, may_build=False)
            parts[name] = (tokenizer, built)
        return found, parts

    validation = Validation(
        files=files,
        overrides=model.settings.overrides,
        escape_special_tokens=escape,
        cache_dir=cache_dir,
        limits=settings.validation_limits,
    )
    found, parts = load_validated(validation, children, read)
    prepared: dict[str, PreparedModel] = {}
    with ExitStack() as failing:
        for name, (tokenizer, built) in parts.items():
            backend = open_backend(model, built.path, settings)
            failing.callback(backend.close)
            prepared[name] = _as_prepared(files, found.by_route[name], tokenizer, built, backend)
        failing.pop_all()
    return PreparedRoutes(found, prepared)


def _as_prepared(
    files: source.ModelFiles,
    described: ModelProperties,
    tokenizer: Tokenizer,
    built: graph.Graph,
    backend: Backend,
) -> PreparedModel:
    runnable = RunnableGraph(
        outputs=built.outputs,
        content_hash=built.content_hash,
        weight_type=built.weight_type,
        weight_bytes=built.weight_bytes,
        place=str(built.path),
    )
    has_table = described.table is not None or described.weight_table is not None
    return PreparedModel(
        files,
        described,
        tokenizer,
        runnable,
        backend,
        default_batch_tokens(on_gpu=backend.device != "cpu", has_table=has_table),
        overhead_tokens=overhead_tokens(has_table=has_table),
    )
